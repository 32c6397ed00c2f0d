"""What the documents say of settings is what the code reads."""

from __future__ import annotations

import re
from pathlib import Path

from aizen_gateway.settings import SETTINGS, settings_table

ROOT = Path(__file__).parent.parent


def test_the_readme_shows_every_setting_as_the_code_declares_it() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"<!-- settings: [^>]*-->\n(.*?)<!-- end of settings -->", readme, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == settings_table()


def test_the_service_s_settings_file_names_every_setting_that_the_unit_does_not_set() -> None:
    lines = (ROOT / "systemd" / "environment").read_text("utf-8").splitlines()
    named = {line.lstrip("#").partition("=")[0] for line in lines if re.match(r"#?[A-Z_]+=", line)}
    assert named == {setting.variable for setting in SETTINGS} - {"AIZEN_PORT", "AIZEN_INSTANCE_ID"}


def test_no_document_leads_to_a_page_that_is_not_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
