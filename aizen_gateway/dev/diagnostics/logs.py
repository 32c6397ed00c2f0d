"""`logs`: the last lines of the system's journal, or of a log file that this device is set up to show."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import BadParameter, Parameters
from aizen_gateway.dev.diagnostics.processes import run_tool

DEFAULT_LOG_FILES = tuple(
    Path("/var/log", name) for name in ("syslog", "messages", "kern.log", "daemon.log", "dmesg", "boot.log", "dpkg.log")
)

_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:\\-]{0,254}\Z", re.ASCII)
_PATH = re.compile(r"/[^\0]{1,1023}\Z")
_MAX_BYTES = 96 * 1024
_JOURNAL_TIMEOUT_S = 10.0
_SEPARATORS = ("-- Logs begin", "-- Journal begins", "-- No entries", "No journal files")


async def logs(parameters: Parameters, allowed: Sequence[Path]) -> Outcome:
    """Show the end of a log.

    Parameters: `source` auto|journal|file (auto: the journal, or the first allowed file that is there when the
    journal is missing or empty); `unit`, of the journal; `path`, one of `allowed`; `lines` 1-1000 (100).
    Result: `{source, path?, unit?, lines: number, cut}`; the text itself is the output, at most 96 KiB of it, and
    `cut` says that there would have been more.
    Raises `CannotRun` when there is no such log, or it may not be read.
    """
    source = parameters.choice("source", "auto", ("auto", "journal", "file"))
    unit = parameters.matching("unit", _UNIT, "the name of a systemd unit")
    path = parameters.matching("path", _PATH, "an absolute path")
    count = parameters.integer("lines", 100, 1, 1000)
    if unit is not None and (path is not None or source == "file"):
        raise BadParameter("unit belongs to the journal, and path to a file: give one of them")
    if source == "journal" and path is not None:
        raise BadParameter("path is for files, not for the journal")
    if source == "file" or path is not None:
        return await _file(path, count, allowed)
    try:
        return await _journal(unit, count)
    except CannotRun as error:
        if source == "journal" or unit is not None:
            raise
        try:
            return await _file(None, count, allowed)
        except CannotRun as other:
            raise CannotRun(f"{error}, and {other}") from None


async def _journal(unit: str | None, count: int) -> Outcome:
    argv = ["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={count}"]
    if unit is not None:
        argv.append(f"--unit={unit}")
    said = await run_tool(argv, timeout_s=_JOURNAL_TIMEOUT_S, limit=1024 * 1024)
    lines = [line for line in said.text.splitlines() if line and not line.startswith(_SEPARATORS)]
    if said.exit_code != 0 and not said.cut:
        raise CannotRun(f"journalctl failed: {(lines or ['no reason given'])[-1][:200]}")
    if not lines and unit is None:
        raise CannotRun("the journal is empty or may not be read")
    text, cut = _last("\n".join(lines))
    return Outcome(text, {"source": "journal", "unit": unit, "lines": len(text.splitlines()), "cut": cut or said.cut})


async def _file(path: str | None, count: int, allowed: Sequence[Path]) -> Outcome:
    if path is None:
        chosen = await asyncio.to_thread(lambda: next((each for each in allowed if each.is_file()), None))
        if chosen is None:
            raise CannotRun("none of the log files that may be shown is on this device")
    else:
        # Compared as written: the file's own owner decides where an allowed name leads to.
        chosen = next((each for each in allowed if str(each) == path), None)
        if chosen is None:
            raise CannotRun("this log file is not among those that this device may show")
    text, cut = await asyncio.to_thread(_tail, chosen, count)
    return Outcome(text, {"source": "file", "path": str(chosen), "lines": len(text.splitlines()), "cut": cut})


def _tail(path: Path, count: int) -> tuple[str, bool]:
    try:
        # Without blocking: a named pipe put in the place of the file must not hold the agent.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CannotRun(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise CannotRun(f"{path} is no ordinary file")
        begin = max(0, facts.st_size - _MAX_BYTES)
        file.seek(begin)
        data = file.read(_MAX_BYTES)
    lines = data.decode("utf-8", "replace").splitlines()
    if begin and len(lines) > 1:
        lines = lines[1:]
    text, cut = _last("\n".join(lines[-count:]))
    return text, cut or (begin > 0 and len(lines) < count)


def _last(text: str) -> tuple[str, bool]:
    data = text.encode("utf-8", "replace")
    if len(data) <= _MAX_BYTES:
        return text, False
    return data[-_MAX_BYTES:].decode("utf-8", "replace").partition("\n")[2], True
