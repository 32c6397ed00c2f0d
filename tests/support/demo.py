"""`aizen-gateway dev` as a newcomer runs it: what it prints, and what of all that it started is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

from aizen_gateway.dev import bound_exec
from aizen_gateway.dev.bound_exec import UNCHANGED
from aizen_gateway.settings import SETTINGS

ROOT = Path(__file__).parents[2]
_SETTING_NAMES = {doc.variable for doc in SETTINGS}


class Run:
    """One `aizen-gateway` process, what it has printed so far, and everything that belongs to it."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str, folder: Path) -> None:
        self.process = process
        self.lines: list[str] = []
        self._mark = mark
        self._folder = str(folder)

    async def until(self, pattern: str) -> str:
        """Read on until a line matches, and return it."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern!r} in:\n{self.text}")

    async def end(self) -> int:
        """Read the rest and return the exit status."""
        assert self.process.stdout is not None
        self.lines += (await self.process.stdout.read()).decode().splitlines()
        return await self.process.wait()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def left(self) -> list[psutil.Process]:
        """What still runs of all that it started."""
        return [found for found in psutil.process_iter() if found.pid != self.process.pid and self._belongs(found)]

    def _belongs(self, found: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            if found.status() == psutil.STATUS_ZOMBIE:
                return False
            mark = found.environ().get("TEST_MARK")
            # The servers have an environment of their own; what they work on tells whose they are.
            named = [found.cwd(), *found.cmdline()]
            return mark == self._mark if mark else any(self._folder in name for name in named)
        return False

    async def all_gone(self) -> bool:
        """Whether nothing is left within 20 s."""
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while self.left():  # noqa: ASYNC110 - they are nobody's children any more
                    await asyncio.sleep(0.05)
                return True
        return False


def command(*arguments: str) -> list[str]:
    """The command line of `aizen-gateway` with these arguments, asked to stop should the tests be killed."""
    binding = [str(os.getpid()), str(signal.SIGTERM.value), str(UNCHANGED), str(UNCHANGED), "1"]
    return [
        sys.executable,
        "-I",
        "-S",
        bound_exec.__file__,
        *binding,
        sys.executable,
        "-m",
        "aizen_gateway",
        *arguments,
    ]


@asynccontextmanager
async def started(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[Run]:
    """Start `aizen-gateway` with these arguments in a clean environment, on any free port."""
    mark = str(uuid4())
    kept = {name: value for name, value in os.environ.items() if name not in _SETTING_NAMES}
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        cwd=ROOT,
        env=kept | {"AIZEN_PORT": "0", "TEST_MARK": mark} | variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    run = Run(process, mark, folder)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        assert await run.all_gone(), run.left()


def dev(folder: Path, *options: str, **variables: str) -> AbstractAsyncContextManager[Run]:
    return started(folder, "dev", "--data-dir", str(folder), *options, **variables)


async def told(folder: Path, *options: str, **variables: str) -> str:
    """Tell the story once, successfully, and return it."""
    async with dev(folder, "--once", *options, **variables) as run:
        assert await run.end() == 0, run.text
        assert run.left() == []
        return run.text


async def begun(folder: Path, *options: str, **variables: str) -> str:
    """Tell the story until the device is there, and return what was told so far."""
    async with dev(folder, *options, **variables) as run:
        await run.until(r"^  [-+!] agent ")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == 128 + signal.SIGINT, run.text
        assert run.left() == []
        return run.text


def fact(text: str, label: str) -> str:
    """The line of the story that begins with this label."""
    found = re.search(rf"^  [-+!] {label} .*$", text, re.MULTILINE)
    assert found is not None, text
    return found[0]
