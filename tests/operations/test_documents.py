"""What docs/operations.md speaks of is there, and what needs an explanation has one."""

from __future__ import annotations

import re
import subprocess

import click

from aizen_gateway.cli import main
from aizen_gateway.settings import SETTINGS
from tests.support.nginx import SITE
from tests.support.processes import ROOT

_PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")


def test_every_alert_is_explained_and_no_other() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docs/prometheus/alerts.yml").read_text("utf-8"))
    assert re.findall(r"^\| `(Aizen\w+)` \|", _PAGE, re.MULTILINE) == alerts
    assert set(re.findall(r"`(Aizen[A-Z]\w+)`", _PAGE)) == set(alerts)


def test_every_setting_that_it_names_is_one() -> None:
    assert set(re.findall(r"\bAIZEN_[A-Z_]+", _PAGE)) <= {setting.variable for setting in SETTINGS}


def test_every_command_that_it_shows_is_one() -> None:
    assert isinstance(main, click.Group)
    shown = re.findall(r"(?:^|/bin/|`)aizen-gateway (\w+)", _PAGE, re.MULTILINE)
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    assert all(command is not None and command.name == name for name, command in commands.items())
    assert {"migrate", "doctor", "customer", "audit"} <= set(shown) <= commands.keys()


def test_every_option_of_the_installation_that_it_shows_is_one() -> None:
    told = subprocess.run([ROOT / "scripts/install-systemd", "--help"], capture_output=True, text=True, check=True)
    for line in re.findall(r"scripts/install-systemd(.*)", _PAGE):
        for option in re.findall(r"--[a-z-]+", line.partition("`")[0]):
            assert option in told.stdout


def test_no_link_leads_to_a_part_that_is_not_there() -> None:
    headings = re.findall(r"^## (.*)$", _PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([a-z-]+)\)", _PAGE)) <= anchors


def test_the_nginx_site_is_linked() -> None:
    assert f"({SITE.relative_to(ROOT / 'docs')})" in _PAGE
