"""What waits in a connection's outbox while its writer begins and ends: nothing is lost, and the order holds."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from aizen_gateway.realtime.connection import Connection, ConnectionLimits
from tests.support.pipe import Pipe, running
from tests.support.waiting import eventually


class Jerky:
    """A transport that fills up and takes more again at any moment."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._roomy = asyncio.Event()
        self._roomy.set()
        self.sent: list[bytes] = []
        self.ended: list[str] = []

    @property
    def full(self) -> bool:
        return not self._roomy.is_set()

    def _take(self, what: bytes) -> None:
        self.sent.append(what)
        if self._chance.random() < 0.3:
            self._roomy.clear()
            asyncio.get_running_loop().call_soon(self._hop, self._chance.randrange(4))

    def _hop(self, ticks: int) -> None:
        if ticks:
            asyncio.get_running_loop().call_soon(self._hop, ticks - 1)
        else:
            self._roomy.set()

    def write(self, frame: bytes) -> None:
        self._take(frame)

    def ping(self) -> None:
        self._take(b"ping")

    def pong(self, data: bytes) -> None:
        self._take(data)

    async def drained(self) -> None:
        await self._roomy.wait()

    async def close(self, code: int, reason: str) -> None:
        self.ended.append(f"{code} {reason}")

    def abort(self) -> None:
        self.ended.append("freed")


@pytest.mark.parametrize("seed", range(30))
async def test_frames_and_pongs_arrive_in_order_and_before_the_close(seed: int) -> None:
    chance = random.Random(seed)
    wire = Jerky(chance)
    connection = Connection(wire, ConnectionLimits(frames=1000))
    wanted = [b"%d" % number for number in range(200)]
    for item in wanted:
        if chance.random() < 0.2:
            connection.pinged(item)
        else:
            connection.send(item)
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
    connection.end(1001, "draining")
    connection.send(b"late")
    async with asyncio.timeout(10):
        await connection.closed()
    assert wire.sent == wanted
    assert wire.ended[:2] == ["1001 draining", "freed"]
    assert set(wire.ended[2:]) <= {"freed"}


async def test_the_last_frame_that_waited_goes_though_nothing_follows_it() -> None:
    pipe = Pipe()
    async with running(pipe) as connection:
        connection.send(b"second")
        pipe.opened.set()
        await eventually(lambda: asyncio.sleep(0, list(pipe.sent)), lambda sent: sent == [b"first", b"second"])
        connection.send(b"third")
        assert pipe.sent == [b"first", b"second", b"third"]


async def test_whoever_is_cancelled_while_it_closes_leaves_a_free_transport() -> None:
    pipe = Pipe()
    connection = Connection(pipe, ConnectionLimits())

    async def close() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await connection.closed()

    closing = asyncio.create_task(close())
    with suppress(asyncio.CancelledError):
        await closing
    assert pipe.aborted.is_set()
