"""All sockets of an instance at its end: told in batches, and none that comes late is forgotten (section 7)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.realtime.live import LiveSockets
from tests.support.pipe import Pipe, running


async def test_a_socket_that_was_being_opened_when_the_drain_began_is_told_too() -> None:
    live = LiveSockets()
    live.require_room()
    await live.drain(1.0)
    with pytest.raises(Unavailable):
        live.require_room()
    async with running(Pipe()) as connection:
        with live.track(connection):
            assert (connection.close_code, live.count) == (1001, 1)
    assert live.count == 0


async def test_not_all_are_told_at_the_same_moment() -> None:
    live = LiveSockets()
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(running(Pipe())) for _ in range(250)]
        told: list[int] = []
        with ExitStack() as tracked:
            for connection in connections:
                tracked.enter_context(live.track(connection))
            draining = asyncio.create_task(live.drain(30.0))
            while not told or told[-1] < 250:
                await asyncio.sleep(0)
                count = sum(connection.ending for connection in connections)
                if count not in (0, *told):
                    told.append(count)
        await draining
    assert told == [100, 200, 250]


async def test_those_that_do_not_leave_in_time_are_ended_by_force() -> None:
    live, pipe = LiveSockets(), Pipe()
    async with running(pipe) as connection:
        with live.track(connection):
            await live.drain(0.1)
            assert pipe.aborted.is_set()


async def test_the_end_of_a_socket_is_told_with_its_code() -> None:
    codes: list[int | None] = []
    live = LiveSockets(ended=codes.append)
    async with running(Pipe()) as connection:
        with live.track(connection):
            connection.end(4409, "superseded")
    assert codes == [4409]
