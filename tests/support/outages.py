"""What happens to servers: they are killed, and they hang without a word, with all the processes that are theirs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from aizen_gateway.dev.embedded import EmbeddedServer


async def crash(server: EmbeddedServer) -> None:
    """Kill the server with no time to say goodbye; `restart` brings it back."""
    os.kill(server.pid, signal.SIGQUIT if server.title == "PostgreSQL" else signal.SIGKILL)
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
