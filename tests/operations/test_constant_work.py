"""What a call costs does not grow with the devices that are registered, with what is open, nor with what has ended.

Counted, not timed: the commands that Redis runs and the keys they name, and what PostgreSQL reads and writes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.values import NOWHERE, Connection, DeviceStatus, HeartbeatStatus
from aizen_gateway.storage.presence import PresenceChange
from tests.bench.filling import finish, keep_waiting, register
from tests.support.bench import Bench, BenchDevice
from tests.support.waiting import eventually

# So many devices and ended commands are few, and so many are many. With next to none PostgreSQL would plan otherwise.
_FEW, _MANY = 300, 5_000
_TIMES = 3
# The server makes plans of their own for a statement's first five calls; then it keeps one.
_UNTIL_PLANNED = 8
_AFTERWARDS = 20

_TABLES = """
select sum(seq_scan + coalesce(idx_scan, 0))::int as scans,
       sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int as read,
       sum(n_tup_ins + n_tup_upd + n_tup_del)::int as written
from pg_stat_user_tables where schemaname = 'aizen'
"""
_ROWS_AND_ENTRIES = """
select sum(seq_tup_read)::int + (select sum(idx_tup_read)::int from pg_stat_user_indexes where schemaname = 'aizen')
from pg_stat_user_tables where schemaname = 'aizen'
"""
_SESSIONS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


@dataclass(frozen=True, slots=True)
class Work:
    """What something took: Redis commands and keys, scans of PostgreSQL's tables, rows read and rows written."""

    commands: int
    keys: int
    scans: int
    read: int
    written: int


@dataclass(slots=True)
class Counter:
    """Counts what a device's calls take. Each one is made at an instance of its own, so that PostgreSQL tells all."""

    device: BenchDevice
    database: asyncpg.Connection
    valkey: Redis

    async def of(self, call: Callable[[BenchDevice], Awaitable[object]]) -> list[Work]:
        """The work of `call`, a few times."""
        return [await self._once(call) for _ in range(_TIMES)]

    async def _once(self, call: Callable[[BenchDevice], Awaitable[object]]) -> Work:
        old = self.device.bench
        bench = await Bench.open(old.database_url, old.redis_url, old.customer_id, AIZEN_RATE_LIMIT_DEVICE="0")
        self.device.bench = bench
        before = await self._tables()
        try:
            async with self.valkey.monitor() as monitor:
                await call(self.device)
                mark = uuid4().hex
                await self.valkey.echo(mark)
                seen = []
                while mark not in (line := (await monitor.next_command())["command"]):
                    seen.append(line)
        finally:
            await bench.close()
        # A connection tells what it did at its end.
        await eventually(lambda: self.database.fetchval(_SESSIONS), lambda count: count == 0)
        after = await self._tables()
        keys = {word for line in seen for word in line.split(" ") if word.startswith("aizen:{")}
        return Work(len(seen), len(keys), *(now - then for then, now in zip(before, after, strict=True)))

    async def _tables(self) -> tuple[int, int, int]:
        row = await self.database.fetchrow(_TABLES)
        assert row is not None
        return row["scans"], row["read"], row["written"]

    async def fill(self, start: int, end: int) -> None:
        """Have `end` devices registered, and `end` commands of this one ended, of which there are `start`."""
        bench = self.device.bench
        await register(self.database, self.valkey, bench.customer_id, start, end)
        await finish(self.database, bench.customer_id, [self.device.device_id], start, end)
        await self.database.execute("vacuum analyze")


@pytest.fixture
async def counter(bench: Bench, redis_url: str) -> AsyncIterator[Counter]:
    """A device that is alone in the world."""
    device = await bench.device("alone")
    await bench.close()
    database = await asyncpg.connect(bench.database_url)
    async with Redis.from_url(redis_url, decode_responses=True) as valkey:
        yield Counter(device, database, valkey)
    await database.close()


async def _does_not_grow(counter: Counter, call: Callable[[BenchDevice], Awaitable[object]]) -> Work:
    """Compare the work of `call` while there is little and while there is much; return the most it was with little.

    Now and then a call does a bit more, such as extending a time to live: the least that it does with much must not be
    more than the most that it does with little.
    """
    await counter.fill(0, _FEW)
    little = await counter.of(call)
    await counter.fill(_FEW, _MANY)
    much = await counter.of(call)
    most = Work(*(max(getattr(work, name) for work in little) for name in Work.__slots__))
    for name in Work.__slots__:
        assert min(getattr(work, name) for work in much) <= getattr(most, name), f"{name}: {little}, then {much}"
    return most


async def _beat(device: BenchDevice) -> None:
    heartbeats = device.bench.services.heartbeats
    await heartbeats.beat(
        device.token,
        status=HeartbeatStatus.ONLINE,
        metrics={"cpu": 12.5},
        diagnostics=None,
        timestamp=None,
        origin=NOWHERE,
    )
    await heartbeats.flush()


async def test_an_empty_claim_takes_as_much_whatever_there_is(counter: Counter) -> None:
    async def call(device: BenchDevice) -> None:
        assert await device.claim(limit=10) == []

    most = await _does_not_grow(counter, call)
    assert (most.scans, most.written) == (0, 0)


async def test_a_heartbeat_takes_as_much_whatever_there_is(counter: Counter) -> None:
    await _does_not_grow(counter, _beat)


async def test_a_delivery_takes_as_much_whatever_there_is(counter: Counter) -> None:
    opened = await Bench.open(
        counter.device.bench.database_url, counter.device.bench.redis_url, counter.device.bench.customer_id
    )
    session_id = await opened.open_session(counter.device.device_id)
    await opened.close()

    async def call(device: BenchDevice) -> None:
        submitted = await device.bench.submit(session_id)
        (claimed,) = await device.claim()
        assert claimed["id"] == submitted["id"]
        assert (await device.report(claimed))["status"] == "succeeded"

    await _does_not_grow(counter, call)


async def test_plans_from_when_there_was_little_are_as_good_when_there_is_much(
    bench: Bench, redis_url: str, valkey: Redis
) -> None:
    """A statement's plan is kept until the table is analyzed, which may be a minute later."""
    device = await bench.device("alone")
    session_id = await bench.open_session("alone")

    uid = (await bench.services.device_access.enter(device.token)).uid

    async def whatever_devices_do() -> None:
        await device.sign_in()
        await _beat(device)
        for status, way in ((DeviceStatus.OFFLINE, Connection.NONE), (DeviceStatus.ONLINE, Connection.POLLING)):
            now_ms = await bench.parts.store.time_ms()
            await bench.parts.attendance.change(PresenceChange("alone", uid, status, way, now_ms))
        submitted = await bench.submit(session_id)
        shown = await bench.services.devices.status(await bench.owner(), "alone")
        assert shown["device"]["pendingCommands"] == 1
        (claimed,) = await device.claim()
        assert claimed["id"] == submitted["id"]
        assert (await device.report(claimed))["status"] == "succeeded"
        await bench.parts.sweep.sessions()
        await bench.parts.sweep.commands()
        await bench.parts.dispatcher.relay()

    for _ in range(_UNTIL_PLANNED):
        await whatever_devices_do()
    database = await asyncpg.connect(bench.database_url)
    try:
        filler = await asyncpg.connect(bench.database_url)
        await register(filler, valkey, bench.customer_id, 0, _MANY)
        await finish(filler, bench.customer_id, ["alone"], 0, _MANY)
        await keep_waiting(filler, bench.index, bench.customer_id, 0, _MANY)
        await filler.close()
        before = await database.fetchval(_ROWS_AND_ENTRIES)
        for _ in range(_AFTERWARDS):
            await whatever_devices_do()
        await bench.parts.database.close()
        await eventually(lambda: database.fetchval(_SESSIONS), lambda count: count == 0)
        read = await database.fetchval(_ROWS_AND_ENTRIES) - before
    finally:
        await database.close()
    assert read < _MANY, f"{_AFTERWARDS} times read {read} rows and entries of indexes"
