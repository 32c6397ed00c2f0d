"""Runs a system tool for a diagnostic: no shell, bounded time and output, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from aizen_gateway.dev.diagnostics.outcome import CannotRun

_CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """`text` is standard output and error together; `cut` says that the tool was ended for saying too much."""

    exit_code: int
    text: str
    cut: bool


async def run_tool(argv: Sequence[str], *, timeout_s: float, limit: int = 256 * 1024) -> ToolOutput:
    """Run `argv` in a process group of its own and return at most `limit` bytes of what it says.

    The group is killed when the time is up, the output is full, or the caller is cancelled. Raises `CannotRun` when
    there is no such tool, it cannot be started, or it takes longer than `timeout_s` seconds.
    """
    path = shutil.which(argv[0])
    if path is None:
        raise CannotRun(f"there is no {argv[0]} on this device")
    process = await _start(path, argv)
    assert process.stdout is not None
    said = bytearray()
    finished = False
    try:
        async with asyncio.timeout(timeout_s):
            while len(said) <= limit and (chunk := await process.stdout.read(_CHUNK)):
                said += chunk
            if len(said) <= limit:
                await process.wait()
                finished = True
    except TimeoutError:
        raise CannotRun(f"{argv[0]} took longer than {timeout_s:g} s") from None
    finally:
        if not finished:
            await _kill(process)
    text = bytes(said[:limit]).decode("utf-8", "replace")
    return ToolOutput(process.returncode or 0, text, not finished)


async def _start(path: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            path,
            *argv[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except OSError as error:
        raise CannotRun(f"{argv[0]} cannot be started: {error.strerror}") from None
    except asyncio.CancelledError:
        # asyncio would end the process alone, and what it has started meanwhile would stay.
        with contextlib.suppress(OSError):
            await _kill(await starting)
        raise


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Its end is told once its output has come to an end: never, when we stopped reading it or somebody else holds it.
    # The pipe alone: closing everything looks at the process too, and takes its status from whoever waits for it.
    pipe = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    if pipe is not None:
        pipe.close()
    await process.wait()
