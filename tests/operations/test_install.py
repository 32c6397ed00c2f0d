"""Installation as a service of systemd: the units, and the script that puts them in place (section 7)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.programs import WITH_INSTALLATION, program

pytestmark = pytest.mark.timeout(WITH_INSTALLATION)

_EXPOSURE = 1.5
# Stands for Python: making an environment and installing into it take long, and a package index.
_PYTHON = """#!/bin/sh
case "$*" in
-c*) ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "#!$3/bin/python" >"$3/bin/aizen-gateway" &&
    chmod +x "$3/bin/aizen-gateway" ;;
*) echo "$*" >>"${0%/*}/asked" ;;
esac
"""


Install = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a system that has nothing but the targets that every system has."""
    made = tmp_path / "root"
    targets = made / "usr" / "lib" / "systemd" / "system"
    targets.mkdir(parents=True)
    for name in ("sysinit", "basic", "shutdown"):
        (targets / f"{name}.target").write_text("[Unit]\n")
    return made


@pytest.fixture
def install(root: Path, tmp_path: Path) -> Install:
    """Call it for `scripts/install-systemd` on that system."""
    python = tmp_path / "python"
    python.write_text(_PYTHON)
    python.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "scripts" / "install-systemd", "--root", root, *arguments],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "AIZEN_PYTHON": str(python)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def _tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file with its mode, its time and what is in it; what the stand-in for Python noted aside."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "asked")
    return {str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_systemd_finds_nothing_wrong_with_the_units(install: Install, root: Path) -> None:
    assert install("--socket").returncode == 0
    units = ("aizen-gateway@3001.service", "aizen-gateway@3001.socket", "aizen-gateway.target")
    found = subprocess.run(
        [program("systemd-analyze"), "verify", f"--root={root}", *units], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_an_instance_is_hardly_exposed(install: Install, root: Path) -> None:
    assert install().returncode == 0
    found = subprocess.run(
        [program("systemd-analyze"), "security", f"--root={root}", "--offline=yes", "aizen-gateway@3001.service"],
        env={"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d)", found.stdout)
    assert level is not None, found.stdout + found.stderr
    assert float(level[1]) <= _EXPOSURE


def test_the_account_can_be_made(install: Install, root: Path) -> None:
    assert install().returncode == 0
    command = [program("systemd-sysusers"), f"--root={root}", "--dry-run", "aizen-gateway.conf"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert "Creating user 'aizen-gateway'" in found.stdout + found.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_the_settings_are_closed_to_others(install: Install, root: Path) -> None:
    assert install().returncode == 0
    made = root / "etc" / "passwd"
    made.write_text("root:x:0:0::/:/bin/sh\naizen-gateway:x:990:990::/:/bin/false\n")
    (root / "etc" / "group").write_text("root:x:0:\naizen-gateway:x:990:\n")
    settings = root / "etc" / "aizen-gateway"
    settings.chmod(0o777)
    (settings / "environment").chmod(0o666)
    command = [program("systemd-tmpfiles"), f"--root={root}", "--create", "aizen-gateway.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (settings.stat().st_mode & 0o777, settings.stat().st_gid) == (0o750, 990)
    assert (settings / "environment").stat().st_mode & 0o777 == 0o640


def test_a_second_installation_changes_nothing_but_the_program(install: Install, root: Path) -> None:
    first = install()
    assert first.returncode == 0
    assert f"writing {root}/etc/systemd/system/aizen-gateway@.service" in first.stdout
    settings = root / "etc" / "aizen-gateway" / "environment"
    assert settings.stat().st_mode & 0o777 == 0o640
    settings.write_text("DATABASE_URL=postgresql://mine\n")
    before = _tree(root)
    second = install()
    assert second.returncode == 0
    assert "writing" not in second.stdout
    assert _tree(root) == before
    asked = (root / "opt/aizen-gateway/venv/bin/asked").read_text().splitlines()
    assert len(asked) == 2
    assert all(call.startswith("-m pip install ") and call.endswith(" .") for call in asked)


def test_nothing_of_another_release_that_was_built_here_is_installed(install: Install) -> None:
    stale = ROOT / "build" / "lib" / "stale-migration.sql"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    assert install().returncode == 0
    assert not stale.exists()


def test_what_sends_traces_is_installed_when_asked_for_and_kept(install: Install, root: Path) -> None:
    venv = root / "opt/aizen-gateway/venv"
    assert install("--otel").returncode == 0
    (venv / "lib/python3.13/site-packages/opentelemetry/sdk").mkdir(parents=True)
    assert install().returncode == 0
    asked = (venv / "bin/asked").read_text().splitlines()
    assert [call.split()[-1] for call in asked] == [".[otel]"] * 2


def test_the_program_can_be_put_elsewhere(install: Install, root: Path) -> None:
    assert install("--prefix", "/srv/gateway").returncode == 0
    unit = (root / "etc/systemd/system/aizen-gateway@.service").read_text()
    assert "ExecStart=/srv/gateway/venv/bin/aizen-gateway serve\n" in unit
    # It is started where it will be, not where it was made.
    assert (root / "srv/gateway/venv/bin/aizen-gateway").read_text() == "#!/srv/gateway/venv/bin/python\n"


def test_a_dry_run_tells_all_and_does_nothing(install: Install, root: Path) -> None:
    before = _tree(root)
    told = install("--dry-run", "--socket", "3001", "3002")
    assert told.returncode == 0
    assert _tree(root) == before
    assert install("--socket", "3001", "3002").returncode == 0
    made = {path.removeprefix(str(root)) for path in _tree(root).keys() - before.keys()}
    for path in made:
        assert path in told.stdout or path.startswith("/opt/aizen-gateway/venv/"), path
    after = _tree(root)
    undone = install("--uninstall", "--dry-run")
    assert undone.returncode == 0
    assert _tree(root) == after


def test_what_is_uninstalled_is_gone_and_the_settings_stay(install: Install, root: Path) -> None:
    before = _tree(root)
    assert install().returncode == 0
    settings = root / "etc" / "aizen-gateway" / "environment"
    settings.write_text("DATABASE_URL=postgresql://mine\n")
    for _ in range(2):
        undone = install("--uninstall")
        assert undone.returncode == 0
        assert str(settings) in undone.stdout
        assert _tree(root).keys() - before.keys() == {str(settings)}
    assert install().returncode == 0
    assert settings.read_text() == "DATABASE_URL=postgresql://mine\n"


@pytest.mark.parametrize("wrong", [["--sockets"], ["70000"], ["0"], ["3001x"], ["--root"]])
def test_a_wrong_argument_is_told_in_a_line(install: Install, root: Path, wrong: list[str]) -> None:
    before = _tree(root)
    refused = install(*wrong)
    assert refused.returncode != 0
    assert len(refused.stderr.splitlines()) == 1
    assert _tree(root) == before
