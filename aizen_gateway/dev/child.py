"""Starts the programs of the embedded servers so that none of them outlives this process.

Three ways to end are covered. Ctrl-C in a terminal reaches the whole process group, so a child gets a session of its
own and is stopped by whoever started it, in order. SIGTERM is the same, one process only. SIGKILL gives us no say, so
the kernel tells the child (`bound_exec`); that works on Linux alone, elsewhere such a child stays and the next start on
the same data names it.

Children are plain `Popen` objects on purpose: they belong to no event loop, so a test session can start a server in
one loop and stop it in another. The kernel counts the *thread* that starts a child as its parent: start children from
one that lives as long as they should, as the main thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic

import psutil

from .bound_exec import UNCHANGED
from .unprivileged import Account

_LAUNCHER = Path(__file__).with_name("bound_exec.py")
_POLL_S = 0.005
_SLOWEST_POLL_S = 0.1
_SETTLE_S = 0.05
_TAIL_LINES = 15
_TAIL_BYTES = 16 * 1024


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    death_signal: signal.Signals,
    account: Account | None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` (an absolute path and arguments) and return its process; the pid is the program's own.

    `log` is emptied and gets all output, `stdin` (at most a pipe buffer, 4 KiB) is what the program reads, `account` is
    whom it runs as, None for the present one, `environment` all its variables, None for those of a server that needs
    none. Raises `OSError` when the interpreter cannot be run; a command that cannot be run ends at once and says so in
    the log.
    """
    uid, gid = (account.uid, account.gid) if account else (UNCHANGED, UNCHANGED)
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    given = environment is not None
    binding = [str(number) for number in (os.getpid(), death_signal.value, uid, gid, int(given))]
    with log.open("wb") as output:
        log.chmod(0o600)
        process = subprocess.Popen(
            [*launcher, *binding, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    assert process.stdin is not None
    # A program that has ended already is noticed by whoever waits for it.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(stdin)
    return process


async def ended(process: subprocess.Popen[bytes], within: float | None = None) -> int | None:
    """Wait until the process has ended and return its status, or None after `within` seconds."""
    deadline = None if within is None else monotonic() + within
    pause = _POLL_S
    while (status := process.poll()) is None:
        if deadline is not None and monotonic() > deadline:
            return None
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _SLOWEST_POLL_S)
    return status


async def settle() -> None:
    """Let a Ctrl-C cancel the caller before it complains that a program has ended.

    A terminal's Ctrl-C in the moment between the fork and the child's own session ends the child as well as us, and
    the child's end may be seen first.
    """
    await asyncio.sleep(_SETTLE_S)


async def stop(process: subprocess.Popen[bytes], signals: Iterable[signal.Signals], patience: float) -> int:
    """End a process and return its status: one signal after another, `patience` seconds each, at last SIGKILL.

    A process that was paused (SIGSTOP) is let run again. When the wait is cancelled the process is killed.
    """
    try:
        for wanted in signals:
            process.send_signal(wanted)
            process.send_signal(signal.SIGCONT)
            if await ended(process, patience) is not None:
                break
    finally:
        if process.poll() is None:
            # With the programs that it runs itself, as initdb does; one that has just ended may not be signalled.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return status


def working_in(*directories: Path) -> list[int]:
    """Return the ids of the processes whose working directory is one of these: those that work on the data in it."""
    places = {str(directory.resolve()) for directory in directories}
    return [process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] in places]


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    with contextlib.suppress(FileNotFoundError), log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return "\n".join(lines.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])
    return ""
