"""What a connection needs of whatever carries its frames."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """The transport of a socket. Only `drained` and `close` wait for the peer.

    `write`, `ping` and `pong` pass on what they are given whether it is `full` or not; these four and `close` may raise
    `ConnectionError` or `RuntimeError` when the peer is gone.
    """

    @property
    def full(self) -> bool: ...

    def write(self, frame: bytes) -> None: ...

    def ping(self) -> None: ...

    def pong(self, data: bytes) -> None: ...

    async def drained(self) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...
