"""The block in which a peer is read: broken off when the socket begins to end, and then just left."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Readable(Protocol):
    """A connection, as far as it is read."""

    @property
    def ending(self) -> bool: ...

    def begin_reading(self, block: asyncio.Timeout) -> None: ...

    def end_reading(self) -> None: ...


class Reading:
    """What `Connection.reading` returns."""

    __slots__ = ("_block", "_connection")

    def __init__(self, connection: Readable) -> None:
        self._connection = connection
        self._block = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._block.__aenter__()
        self._connection.begin_reading(self._block)

    async def __aexit__(self, *raised: Any) -> bool:
        self._connection.end_reading()
        try:
            await self._block.__aexit__(*raised)
        except TimeoutError:
            if not self._connection.ending:
                raise
            return True
        return False
