"""What the gateway says to a service manager and takes from it: readiness, a sign of life, sockets (section 7).

Without a service manager none of the variables is set, and nothing here does anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

_FIRST_PASSED_DESCRIPTOR = 3
_SHOWN_EVERY_S = 1.0


def notify(state: str) -> None:
    """Send `state`, such as `READY=1`, to `NOTIFY_SOCKET`. Never fails: a manager that is gone has nothing to know."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Inside, the event loop's own turning is what tells the manager that this process is alive.

    A loop that is blocked says nothing, and one that lags by as much as the manager waits says it too late.
    """
    seconds = _watchdog_s()
    async with _beside(None if seconds is None else _signs_of_life(seconds)):
        yield


async def _signs_of_life(seconds: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def shown(status: Callable[[], str]) -> AsyncIterator[None]:
    """Inside, the manager shows `status()`, a line for people, as it is now or was a second ago."""
    async with _beside(_show(status) if os.environ.get("NOTIFY_SOCKET") else None):
        yield


async def _show(status: Callable[[], str]) -> None:
    last = None
    while True:
        if (text := status()) != last:
            notify(f"STATUS={text}")
            last = text
        await asyncio.sleep(_SHOWN_EVERY_S)


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None] | None) -> AsyncIterator[None]:
    if work is None:
        yield
        return
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _watchdog_s() -> float | None:
    """Seconds between signs of life, half of what the manager waits for one; None when it does not wait."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000 or None


def passed_sockets() -> list[socket.socket]:
    """The listening sockets of `LISTEN_FDS`, when they are meant for this process. Raises `OSError`."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    return [_passed_socket(_FIRST_PASSED_DESCRIPTOR + number) for number in range(int(count))]


def _passed_socket(descriptor: int) -> socket.socket:
    passed = socket.socket(fileno=descriptor)
    if passed.type != socket.SOCK_STREAM:
        raise OSError(f"descriptor {descriptor} of LISTEN_FDS is no stream socket")
    passed.set_inheritable(False)
    return passed
