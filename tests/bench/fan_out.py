"""Events on their way to many portals: thousands of frames a second, and one event for everybody at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID, uuid4

import orjson
from aiohttp import ClientSession

from aizen_gateway.storage.events import EventStream
from tests.support.clients import token_for

from .load import Load, share
from .outcome import Check, Figure, Figures, Row
from .pinger import pinging
from .plan import Plan
from .raw_sockets import RawSocket, sockets
from .stage import Server, Stage

_JOIN = b'{"type":"join_rooms"}'
_SHARE, _P99_MS = 0.6, 5.0
# What thousands of pings at once would look like.
_SPIKE_MS = 50.0
_SLOWER, _OTHERS_WAIT_MS = 1.3, 20.0
_FRAME = 300
# What the gateway puts in front of an event: `{"eventId":"1800000000000-0","room":"device:bench",`.
_HEAD = 50
_AT_ONCE = 32
_PATIENCE_S = 10.0
# How the sockets are spread: over so many customers.
_CUSTOMERS = (20, 1)


class Ears:
    """What all sockets hear. `waits` are the seconds from publishing to arrival."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.count = 0
        self._wanted = 0
        self._enough: asyncio.Future[float] | None = None

    def heard(self, payload: bytes) -> None:
        """A frame has come."""
        now = time.perf_counter()
        self.count += 1
        at = payload.find(b'"sentNs":')
        if at >= 0:
            digits = payload[at + 9 : payload.find(b",", at + 9)]
            self.waits.append(now - int(digits) / 1e9)
        if self.count == self._wanted and self._enough is not None:
            self._enough.set_result(now)

    def expect(self, more: int) -> asyncio.Future[float]:
        """What will tell when so many more frames have come."""
        self._wanted = self.count + more
        self._enough = asyncio.get_running_loop().create_future()
        return self._enough


@asynccontextmanager
async def _listeners(server: Server, tokens: Sequence[str], ears: Ears) -> AsyncIterator[list[RawSocket]]:
    """Inside, a portal of each token is in the room of its customer."""
    paths = [f"/ws/customer?token={token}" for token in tokens]
    async with sockets(server.port, paths, _AT_ONCE, ears.heard) as opened:
        for start in range(0, len(opened), _AT_ONCE):
            batch = opened[start : start + _AT_ONCE]
            joined = ears.expect(len(batch))
            for socket in batch:
                socket.tell(_JOIN)
            async with asyncio.timeout(_PATIENCE_S):
                await joined
        yield opened


async def _customers(stage: Stage, count: int) -> list[tuple[UUID, str]]:
    """New customers, each with the token of its owner."""
    found = [uuid4() for _ in range(count)]
    async with stage.database() as database:
        await database.executemany(
            "insert into aizen.customers (id, name) values ($1, 'Bench')", [(customer,) for customer in found]
        )
    return [(customer, token_for(str(uuid4()), customer=str(customer), role="owner", ttl=86_400)) for customer in found]


def _event(octets: int) -> dict[str, object]:
    """An event that says when it was sent, of `octets` octets as JSON."""
    payload: dict[str, object] = {"sentNs": time.perf_counter_ns(), "deviceId": "bench", "text": ""}
    event: dict[str, object] = {"type": "device_status", "payload": payload}
    payload["text"] = "x" * (octets - len(orjson.dumps(event)))
    return event


async def measure_events(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """A row for each way in which the sockets are spread over customers: one that has them all is the hardest."""
    for count in _CUSTOMERS:
        gateway = await stage.gateway()
        try:
            figures = await _events(stage, plan, gateway, await _customers(stage, count))
        finally:
            await gateway.end()
        checks = (
            Check("of a core", figures[Figure.SHARE], _SHARE),
            Check("ms p99", figures[Figure.P99], _P99_MS),
            Check("ms max", figures[Figure.MAX], _SPIKE_MS),
            Check("of all frames", figures[Figure.RATE] / plan.frames, 0.99, at_least=True),
        )
        load = f"{plan.portals} sockets of {count}"
        yield Row(f"events-{count}", f"customer events, {plan.frames} frames/s", load, count, figures, None, checks)


async def _events(stage: Stage, plan: Plan, gateway: Server, customers: Sequence[tuple[UUID, str]]) -> Figures:
    ears, stream = Ears(), EventStream(stage.store)
    each = plan.portals // len(customers)
    every = each / plan.frames
    async with _listeners(gateway, [token for _, token in customers for _ in range(each)], ears):
        loop = asyncio.get_running_loop()
        due = started = loop.time()
        before, beginning = (gateway.cpu(), stage.valkey_cpu()), time.perf_counter()
        number = 0
        while due < started + plan.listening:
            customer, _ = customers[number % len(customers)]
            await stream.publish(customer, "device:bench", 0, ["device:bench"], _event(_FRAME - _HEAD))
            number += 1
            due += every
            await asyncio.sleep(max(0.0, due - loop.time()))
        seconds = time.perf_counter() - beginning
        after = gateway.cpu(), stage.valkey_cpu()
        await asyncio.sleep(plan.settle)
    waits = ears.waits
    load = Load.of(waits, seconds)
    return {
        Figure.RATE: load.per_second,
        Figure.P50: load.p50 * 1000,
        Figure.P99: load.p99 * 1000,
        Figure.MAX: max(waits) * 1000,
        Figure.SHARE: (after[0] - before[0]) / seconds,
        Figure.CPU: (after[0] - before[0]) / len(waits) * 1e6,
        Figure.VALKEY: (after[1] - before[1]) / len(waits) * 1e6,
    }


async def measure_broadcast(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """One row: from the event to the last socket's frame, beside a plain loop, and what another socket waits."""
    async with stage.pair() as (gateway, ceiling):
        (customer, token), (_, other) = await _customers(stage, 2)
        stream = EventStream(stage.store)
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(ClientSession())

            async def publish() -> None:
                await stream.publish(customer, "device:bench", 0, ["device:bench"], _event(_FRAME - _HEAD))

            async def trigger() -> None:
                url = f"http://127.0.0.1:{ceiling.port}/broadcast"
                async with http.post(url, data=orjson.dumps(_event(_FRAME))) as answer:
                    assert answer.status == 200

            found = {}
            for server, begin in ((ceiling, trigger), (gateway, publish)):
                ears = Ears()
                async with _listeners(server, [token] * plan.audience, ears):
                    found[server.name] = await _broadcasts(plan, server, other, ears, begin)
    ours, bare = found["gateway"], found["ceiling"]
    checks = (
        Check("x the loop", ours[Figure.P50] / bare[Figure.P50], _SLOWER),
        Check("ms another waits", ours[Figure.MAX], _OTHERS_WAIT_MS),
    )
    yield Row("broadcast", "broadcast of 300 bytes", f"{plan.audience} sockets", plan.audience, ours, bare, checks)


async def _broadcasts(
    plan: Plan, server: Server, other: str, ears: Ears, begin: Callable[[], Awaitable[None]]
) -> Figures:
    """The figures of some broadcasts; the maximum is what another socket waited meanwhile."""
    times, waits = [], []
    async with pinging(server.port, f"/ws/customer?token={other}") as longest:
        cpu = server.cpu()
        for _ in range(plan.broadcasts):
            await asyncio.sleep(plan.settle / 4)
            await longest()
            all_heard = ears.expect(plan.audience)
            started = time.perf_counter()
            task = asyncio.ensure_future(begin())
            async with asyncio.timeout(_PATIENCE_S):
                times.append(await all_heard - started)
                await task
            waits.append(await longest())
        cpu = server.cpu() - cpu
    return {
        Figure.P50: share(times, 0.5) * 1000,
        Figure.P99: share(times, 0.99) * 1000,
        Figure.MAX: max(waits),
        Figure.CPU: cpu / plan.broadcasts / plan.audience * 1e6,
    }
