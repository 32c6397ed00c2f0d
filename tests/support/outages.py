"""What happens to servers: they are killed, and they hang without a word, with all the processes that are theirs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from aizen_gateway.dev.embedded import EmbeddedServer


async def crash(server: EmbeddedServer) -> None:
    """Make the server end at once, with no time to say goodbye; `restart` brings it back."""
    os.kill(server.pid, signal.SIGQUIT if server.title == "PostgreSQL" else signal.SIGKILL)
    await server.wait()


async def kill(server: EmbeddedServer) -> None:
    """Kill the server's first process; those that are its own notice and end by themselves."""
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()


async def shut_down(server: EmbeddedServer) -> None:
    """Stop the server as its operator does, with open connections ended; `restart` brings it back."""
    os.kill(server.pid, signal.SIGINT if server.title == "PostgreSQL" else signal.SIGTERM)
    await server.wait()


@contextmanager
def hung(server: EmbeddedServer) -> Iterator[None]:
    """Inside, the server takes connections, as the kernel does that for it, and answers nothing at all."""
    first = psutil.Process(server.pid)
    first.suspend()
    family = [first, *first.children(recursive=True)]
    for process in family[1:]:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(family):
            if process.is_running():
                process.resume()
