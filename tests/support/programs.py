"""Programs of the system that some tests run beside the gateway. A missing one is installed, or the test fails."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where such programs are, also for those whose PATH leaves these out.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
# Seconds for a test that may have to install what it needs first.
WITH_INSTALLATION = 300
# Below what systems use for outgoing connections: a port stays free while its server is away.
_PORTS = range(10_000, 16_000)


def program(name: str) -> str:
    """The path of the program `name`. Where it is missing it is installed; where that cannot be, the test fails."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        outcome = subprocess.run([ROOT / "scripts" / "ci-packages"], capture_output=True, text=True, check=False)
        path = shutil.which(name, path=_PATH)
        if path is None:
            pytest.fail(f"{name} is needed. {outcome.stderr.strip()}", pytrace=False)
    return path


def stable_port() -> int:
    """A port that nobody uses now, and that stays free while the server that is given it restarts."""
    while True:
        port = random.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
