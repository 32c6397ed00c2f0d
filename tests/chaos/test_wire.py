"""The lines that `scripts/chaos` breaks: what they carry, hold back and reset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import Wire

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# Seconds for what must not come.
_SILENCE_S = 0.1


@asynccontextmanager
async def echoing() -> AsyncIterator[Wire]:
    """A line to a server that says everything back."""
    tasks: set[asyncio.Task[None]] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1024):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(echo(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with Wire.to(server.sockets[0].getsockname()[1]) as wire:
        yield wire
    server.close()
    await asyncio.gather(*tasks)


async def connect(wire: Wire) -> Ends:
    return await asyncio.open_connection("127.0.0.1", wire.port)


async def said(ends: Ends, text: bytes) -> bytes:
    """What comes back for `text`."""
    ends[1].write(text)
    async with asyncio.timeout(5):
        return await ends[0].readexactly(len(text))


async def test_a_reset_reaches_the_client_and_the_next_connection_works() -> None:
    async with echoing() as wire:
        ends = await connect(wire)
        assert await said(ends, b"one") == b"one"
        wire.reset()
        with pytest.raises(ConnectionResetError):
            await ends[0].read(1)
        ends[1].close()
        again = await connect(wire)
        assert await said(again, b"two") == b"two"
        again[1].close()


async def test_what_was_sent_into_a_cut_arrives_after_it() -> None:
    async with echoing() as wire:
        ends = await connect(wire)
        assert await said(ends, b"one") == b"one"
        wire.block()
        late = await connect(wire)
        for end in (ends, late):
            end[1].write(b"into the cut")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(end[0].read(1), _SILENCE_S)
        wire.unblock()
        for end in (ends, late):
            assert await asyncio.wait_for(end[0].readexactly(12), 5) == b"into the cut"
            end[1].close()


async def test_a_cut_may_end_with_resets() -> None:
    async with echoing() as wire:
        ends = await connect(wire)
        assert await said(ends, b"one") == b"one"
        wire.block()
        ends[1].write(b"into the cut")
        wire.unblock(forgotten=True)
        with pytest.raises(ConnectionResetError):
            await ends[0].read(1)
        ends[1].close()
        again = await connect(wire)
        assert await said(again, b"two") == b"two"
        again[1].close()


async def test_a_line_to_a_server_that_is_away_is_reset() -> None:
    async with echoing() as wire:
        target = wire.port
    async with Wire.to(target) as nowhere:
        ends = await connect(nowhere)
        with pytest.raises(ConnectionResetError):
            await ends[0].read(1)
        ends[1].close()
