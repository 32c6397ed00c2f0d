"""A portal that only pings, in a process of its own: how long it waits is the server's doing, not the bench's.

Run with a port and a path. Prints the longest wait in milliseconds for each line that it reads, since the last one.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from .raw_sockets import handshake, masked_text

_PING = masked_text(b'{"type":"ping"}')
_EVERY_S = 0.001
_PATIENCE_S = 10.0


@asynccontextmanager
async def pinging(port: int, path: str) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Inside, a socket at `path` pings; call it for the longest wait since the last call, in milliseconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.pinger", str(port), path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, back = process.stdin, process.stdout

    async def longest() -> float:
        to.write(b"\n")
        async with asyncio.timeout(_PATIENCE_S):
            return float(await back.readline())

    try:
        await longest()
        yield longest
    finally:
        process.kill()
        await process.wait()


def main() -> None:
    """Ping until stdin ends."""
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), _PATIENCE_S) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(handshake(sys.argv[2]))
        head = line.recv(65536)
        assert head.startswith(b"HTTP/1.1 101 "), head
        # The greeting, if it did not come along.
        select.select([line], [], [], 0.2)[0] and line.recv(65536)
        longest = 0.0
        while True:
            started = time.perf_counter()
            line.sendall(_PING)
            answer = line.recv(65536)
            longest = max(longest, time.perf_counter() - started)
            if not answer:
                return
            if select.select([sys.stdin], [], [], _EVERY_S)[0]:
                if not sys.stdin.readline():
                    return
                print(longest * 1000, flush=True)  # noqa: T201 - it is what the bench reads
                longest = 0.0


if __name__ == "__main__":
    main()
