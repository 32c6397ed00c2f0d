"""Accepted means durable: what is left when Redis, PostgreSQL or a gateway is lost (contract section 3, promise 7)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientError, ClientSession
from redis.asyncio import Redis

from aizen_gateway.domain.clock import EPOCH
from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.domain.values import NOWHERE, DeviceCaller, ResultStatus
from aizen_gateway.storage.keys import DeviceKeys
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.bench import Bench
from tests.support.clients import API, DeviceClient, Reply, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.inside import all_of_redis, passes, redis_ms
from tests.support.line import Line
from tests.support.outages import crash
from tests.support.processes import StartGatewayProcess
from tests.support.servers import FreshPostgres, FreshValkey
from tests.support.waiting import SHOWS_WITHIN, eventually

NOWHERE_URL = "redis://127.0.0.1:1/0"


async def signed_in(device: DeviceClient) -> None:
    """Sign in as soon as that works: tokens live in Redis alone."""
    await eventually(device.sign_in, lambda reply: reply.status == 200)


async def all_claimed(device: DeviceClient, count: int) -> list[Any]:
    """Claim until `count` commands have come, within the 10 s in which an emptied index is filled."""
    claimed: list[Any] = []
    async with asyncio.timeout(SHOWS_WITHIN):
        while len(claimed) < count:
            claimed += await device.claim(limit=10, waitMs=1000)
    return claimed


async def test_emptying_redis_loses_no_command_and_keeps_their_order(line: Line, valkey: Redis) -> None:
    submitted = [await line.submit(priority=priority) for priority in (5, 1, 9, 5, 1)]
    approved = await line.approved(priority=3)
    (lapsed,) = await line.device.claim(visibilityTimeout=1000)
    (released,) = await line.device.claim()
    expect(await line.device.release(released), 200)
    await passes(valkey, 1000)
    await valkey.flushall()
    assert (await line.device.heartbeat()).code == "UNAUTHENTICATED"
    await signed_in(line.device)
    claimed = await all_claimed(line.device, 6)
    expected = sorted([*submitted, approved], key=lambda command: command["priority"])
    order = [command["id"] for command in claimed]
    assert sorted(order) == sorted(command["id"] for command in expected)
    if len({command["timestamp"] for command in claimed}) == 1:
        assert order == [command["id"] for command in expected]
    attempts = {command["id"]: command["attempt"] for command in claimed}
    assert attempts.pop(lapsed["id"]) == 2
    assert set(attempts.values()) == {1}
    for command in claimed:
        expect(await line.device.report(command), 200)


async def test_emptying_redis_ends_no_claim(line: Line, valkey: Redis) -> None:
    held = await line.claimed()
    canceled = await line.claimed()
    expect(await line.world.owner.cancel({"sessionId": line.session_id, **canceled}), 200)
    await valkey.flushall()
    await signed_in(line.device)
    waiting = await line.submit()
    assert [command["id"] for command in await all_claimed(line.device, 1)] == [waiting["id"]]
    assert await line.device.claim(limit=10) == []
    assert expect(await line.device.extend(canceled), 200)["cancelRequested"] is True
    expect(await line.device.extend(held, extensionMs=1000), 200)
    (again,) = await all_claimed(line.device, 1)
    assert (again["id"], again["attempt"]) == (held["id"], 2)


async def test_redis_may_be_emptied_again_while_it_is_being_filled(
    line: Line, start_gateway: StartGateway, valkey: Redis
) -> None:
    await start_gateway()
    for _ in range(20):
        await line.submit()
    for _ in range(5):
        await valkey.flushall()
        await asyncio.sleep(0.3)
    await signed_in(line.device)
    claimed = await all_claimed(line.device, 20)
    assert len({command["id"] for command in claimed}) == 20


class Work:
    """A device's agent, many times over: claims and reports until `wanted` results were taken."""

    def __init__(self, wanted: int) -> None:
        self.reported: set[str] = set()
        self._wanted = wanted

    async def run(self, device: DeviceClient) -> None:
        async with asyncio.timeout(30):
            while len(self.reported) < self._wanted:
                reply = await device.post(f"{API}/device/commands/claim", {"limit": 3, "waitMs": 200})
                if reply.status == 401:
                    await device.sign_in()
                    continue
                for claimed in expect(reply, 200)["commands"]:
                    await self._report(device, claimed)

    async def _report(self, device: DeviceClient, claimed: Any) -> None:
        while (reply := await device.report(claimed)).status == 401:
            await device.sign_in()
        expect(reply, 200)
        self.reported.add(claimed["id"])


async def test_emptying_redis_in_the_middle_of_everything_loses_nothing_that_was_accepted(
    line: Line, start_gateway: StartGateway, valkey: Redis
) -> None:
    elsewhere = line.at(await start_gateway())
    work = Work(30)

    async def submit() -> list[str]:
        return [(await line.submit())["id"] for _ in range(30)]

    async def lose() -> None:
        for _ in range(3):
            await asyncio.sleep(0.05)
            await valkey.flushall()

    accepted, *_ = await asyncio.gather(
        submit(), lose(), work.run(line.device), work.run(replace(elsewhere, headers={**line.device.headers}))
    )
    session = await line.world.owner.session(line.session_id)
    assert {command["id"]: command["status"] for command in session["commands"]} == dict.fromkeys(accepted, "succeeded")
    assert all(command["attempt"] == 1 for command in session["commands"])


async def test_a_redis_that_died_and_came_back_empty_costs_no_command(
    fresh_valkey: FreshValkey, start_world: StartWorld
) -> None:
    valkey = await fresh_valkey()
    world = await start_world(REDIS_URL=valkey.url)
    line = await Line.open(world)
    waiting, held = await line.submit(), await line.submit(priority=1)
    (claimed,) = await line.device.claim()
    assert claimed["id"] == held["id"]
    await crash(valkey)
    for reply in (
        await line.device.heartbeat(),
        await line.device.post(f"{API}/device/commands/claim", {}),
        await line.device.report(claimed),
        await line.device.sign_in(),
        await world.owner.get(f"{API}/customer/sessions/{line.session_id}"),
    ):
        assert (reply.status, reply.code) == (503, "UNAVAILABLE")
        assert int(reply.headers["Retry-After"]) >= 1
    await valkey.restart()
    await signed_in(line.device)
    assert [command["id"] for command in await all_claimed(line.device, 1)] == [waiting["id"]]
    answer = expect(await line.device.report(claimed), 200)
    assert (answer["duplicate"], answer["late"]) == (False, False)


async def test_a_redis_that_came_back_is_there_for_every_connection_that_was_open_before(
    fresh_valkey: FreshValkey, start_world: StartWorld
) -> None:
    valkey = await fresh_valkey()
    world = await start_world(REDIS_URL=valkey.url)
    devices = [await world.device() for _ in range(10)]
    await asyncio.gather(*(device.heartbeat() for device in devices))
    await crash(valkey)
    await valkey.restart()
    await signed_in(devices[0])
    replies = await asyncio.gather(*(device.sign_in() for device in devices))
    assert [reply.status for reply in replies] == [200] * 10


async def test_a_redis_behind_a_unix_socket_may_be_away_too(tmp_path: Path) -> None:
    store = RedisStore.connect(RedisOptions(f"unix://{tmp_path}/redis.sock"))
    with pytest.raises(Unavailable):
        await store.time_ms()
    await store.close()


async def test_without_postgresql_empty_claims_and_heartbeats_go_on(
    fresh_postgres: FreshPostgres, start_gateway: StartGateway, http: ClientSession, valkey: Redis
) -> None:
    postgres = await fresh_postgres()
    gateway = await start_gateway(DATABASE_URL=postgres.url)
    bench = await Bench.open(postgres.url, valkey_url(valkey))
    device, other = [await bench.device(name) for name in ("router-1", "router-2")]
    session = await bench.open_session("router-2")
    held = await bench.submit(session)
    (claimed,) = await other.claim()
    waiting = await bench.submit(session)
    first = DeviceClient(http, gateway.url, {"X-Device-Token": device.token}, device_id="router-1")
    second = DeviceClient(http, gateway.url, {"X-Device-Token": other.token}, device_id="router-2")
    expect(await first.heartbeat(), 200)
    await crash(postgres)
    assert await first.claim(limit=10) == []
    expect(await first.heartbeat(metrics={"cpu": 5}, diagnostics=[1, 2]), 200)
    for reply in (
        await second.post(f"{API}/device/commands/claim", {"limit": 10}),
        await second.report(claimed),
        await second.extend(claimed),
        await second.release(claimed),
        await second.read(held["id"]),
    ):
        assert (reply.status, reply.code) == (503, "UNAVAILABLE"), reply
        assert int(reply.headers["Retry-After"]) >= 1
    await postgres.restart()
    await eventually(lambda: second.read(held["id"]), lambda reply: reply.status == 200)
    (again,) = await second.claim(limit=10)
    assert (again["id"], again["attempt"]) == (waiting["id"], 1)
    answer = expect(await second.report(claimed), 200)
    assert (answer["duplicate"], answer["late"]) == (False, False)
    written = "select metrics, diagnostics from aizen.devices where id = 'router-1'"

    async def metrics() -> Any:
        row = await bench.parts.database.fetchrow(written)
        return row["metrics"], row["diagnostics"]

    try:
        await eventually(metrics, lambda found: bool(found == ({"cpu": 5}, [1, 2])))
    finally:
        await bench.close()


def valkey_url(valkey: Redis) -> str:
    options = valkey.connection_pool.connection_kwargs
    return f"redis://:{options['password']}@{options['host']}:{options['port']}/0"


async def test_what_a_gateway_answered_before_it_was_killed_is_not_lost(
    start_gateway_process: StartGatewayProcess, line: Line
) -> None:
    doomed = await start_gateway_process()
    owner = replace(line.world.owner, url=doomed.url)
    device = replace(line.device, url=doomed.url)
    done = [await line.submit(priority=1) for _ in range(5)]
    claims = await device.claim(limit=5)
    accepted: list[str] = []
    reported: list[str] = []

    async def report() -> None:
        for claimed in claims:
            expect(await device.report(claimed), 200)
            reported.append(claimed["id"])

    async def submit() -> None:
        while True:
            accepted.append((await owner.submit(line.session_id))["id"])
            if len(accepted) == 10:
                doomed.run.signal(signal.SIGKILL)

    outcomes = await asyncio.gather(submit(), report(), return_exceptions=True)
    assert isinstance(outcomes[0], ClientError)
    assert {command["id"] for command in done} >= set(reported)
    for command_id in reported:
        assert (await line.seen({"id": command_id}))["status"] == "succeeded"
    for claimed in claims:
        expect(await line.device.report(claimed), 200)
    open_now = [
        command["id"]
        for command in (await line.world.owner.session(line.session_id))["commands"]
        if command["status"] == "queued"
    ]
    assert set(open_now) >= set(accepted)
    claimed_now = await all_claimed(line.device, len(open_now))
    assert [command["id"] for command in claimed_now] == open_now


async def test_a_command_whose_gateway_died_before_redis_knew_of_it_is_delivered(
    bench: Bench, start_gateway: StartGateway, http: ClientSession, valkey: Redis
) -> None:
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    doomed = await Bench.open(bench.database_url, NOWHERE_URL, bench.customer_id)
    try:
        command = await doomed.submit(session, now_ms=await redis_ms(valkey))
    finally:
        await doomed.close()
    assert await device.claim() == []
    survivor = DeviceClient(http, (await start_gateway()).url, {"X-Device-Token": device.token}, device_id="router-1")
    (claimed,) = await all_claimed(survivor, 1)
    assert claimed["id"] == command["id"]


async def test_a_result_whose_gateway_died_before_redis_knew_of_it_counts(
    bench: Bench, start_gateway: StartGateway, valkey: Redis
) -> None:
    device = await bench.device("router-1")
    await bench.submit(await bench.open_session("router-1"))
    (claimed,) = await device.claim()
    caller = await bench.services.device_access.enter(device.token)
    doomed = await Bench.open(bench.database_url, NOWHERE_URL, bench.customer_id)
    try:
        answer = await report_as(doomed, caller, claimed)
    finally:
        await doomed.close()
    assert (answer["status"], answer["duplicate"]) == ("succeeded", False)
    leased = DeviceKeys.of("router-1").leased
    assert await valkey.zscore(leased, claimed["id"]) is not None
    await start_gateway()
    await eventually(lambda: valkey.exists(leased), lambda found: not found)
    assert (await report_as(bench, caller, claimed))["duplicate"] is True


async def report_as(bench: Bench, caller: DeviceCaller, claimed: Any) -> Any:
    return await bench.services.delivery.report(
        caller,
        UUID(claimed["id"]),
        claim_token=claimed["claimToken"],
        status=ResultStatus.SUCCESS,
        output=None,
        error=None,
        result=None,
        executed_at=EPOCH,
        duration=1,
        origin=NOWHERE,
    )


async def test_a_claim_that_died_between_redis_and_the_truth_does_not_keep_the_command(bench: Bench) -> None:
    """What the index leased for nobody comes back with the audit of the index, long before the lease ends."""
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"))
    leased = await bench.index.lease(device.token, 1, 3_600_000)
    assert [str(found) for found in leased.ids] == [command["id"]]
    assert await device.claim() == []
    await bench.parts.recovery.fill()
    (claimed,) = await device.claim()
    assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)


async def test_a_claim_that_cannot_be_written_is_given_back(bench: Bench) -> None:
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"))
    blind = await Bench.open("postgresql://nobody@127.0.0.1:1/nothing", bench.redis_url, bench.customer_id)
    try:
        with pytest.raises(Unavailable):
            await replace(device, bench=blind).claim()
    finally:
        await blind.close()
    (claimed,) = await device.claim()
    assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)


async def without_end(valkey: Redis) -> list[str]:
    """The keys that would stay for ever."""
    return [key async for key in valkey.scan_iter("*") if await valkey.pttl(key) == -1]


async def everything(line: Line, valkey: Redis) -> AsyncIterator[str]:
    """Everything that makes keys, a step at a time."""
    device = line.device
    yield "signed in"
    expect(await device.heartbeat(metrics={"cpu": 1}), 200)
    yield "heartbeat"
    await device.claim()
    yield "empty claim"
    await line.submit()
    await line.submit("restart_dhcp")
    yield "submitted"
    (claimed,) = await device.claim(visibilityTimeout=1000)
    yield "claimed"
    await passes(valkey, 1000)
    expect(await device.heartbeat(), 200)
    yield "lapsed, seen by a heartbeat"
    (claimed,) = await device.claim()
    expect(await device.extend(claimed), 200)
    yield "extended"
    expect(await device.release(claimed), 200)
    yield "released"
    (claimed,) = await device.claim()
    expect(await line.world.owner.cancel({"sessionId": line.session_id, **claimed}), 200)
    yield "asked to stop"
    expect(await device.report(claimed), 200)
    yield "reported"
    await line.world.anyone().post(f"{API}/device/auth", {"deviceId": "nobody", "deviceSecret": "wrong"})
    yield "refused"
    await line.submit()
    await valkey.flushall()
    await signed_in(device)
    (claimed,) = await all_claimed(device, 1)
    yield "filled again"


async def test_every_key_in_redis_has_an_end(line: Line, valkey: Redis) -> None:
    steps = 0
    async for step in everything(line, valkey):
        steps += 1
        assert await valkey.dbsize()
        left = await eventually(lambda: without_end(valkey), lambda found: not found)
        assert left == [], step
    assert steps > 10


async def test_what_was_given_back_has_an_end_too(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("router-1")
    await bench.submit(await bench.open_session("router-1"))
    leased = await bench.index.lease(device.token, 1, 60_000)
    await bench.index.give_back("router-1", leased.ids)
    assert await without_end(valkey) == []


async def test_a_finished_command_leaves_nothing_in_redis(line: Line, valkey: Redis) -> None:
    """But for the event stream, which is capped, and keeps its events for portals that come back."""

    async def life(end: Callable[[Any], Any]) -> str:
        claimed = await line.claimed(parameters={"host": "h" * 500})
        await end(claimed)
        return str(claimed["id"])

    async def reported(claimed: Any) -> Reply:
        return await line.device.report(claimed, output="o" * 1000)

    async def forced(claimed: Any) -> Reply:
        return await line.world.owner.cancel({"sessionId": line.session_id, **claimed}, force=True)

    async def released(claimed: Any) -> Reply:
        expect(await line.device.release(claimed), 200)
        return await line.world.owner.cancel({"sessionId": line.session_id, **claimed})

    async def kept() -> set[str]:
        return {key async for key in valkey.scan_iter("*") if not key.endswith((":events", ":failures"))}

    await life(reported)
    before = await kept()
    ids = [await life(end) for end in (reported, forced, released) for _ in range(5)]
    assert await kept() <= before
    queue = DeviceKeys.of(line.device.device_id).queue
    assert [key for key in queue if await valkey.exists(key)] == []
    text = await all_of_redis(valkey)
    left = [row for row in text.splitlines() if any(command_id in row for command_id in ids)]
    assert [row for row in left if ":events " not in row and ":versions " not in row] == []


async def test_a_hundred_lives_of_commands_do_not_grow_redis(line: Line, valkey: Redis) -> None:
    """Everything that announces events is capped for each customer; everything else is gone with its command."""

    async def sizes() -> dict[str, int]:
        found = {key: await valkey.memory_usage(key) or 0 async for key in valkey.scan_iter("*")}
        return {key: size for key, size in found.items() if not key.endswith((":events", ":versions"))}

    async def live(count: int) -> None:
        for _ in range(count):
            expect(await line.device.report(await line.claimed()), 200)

    await live(5)
    before = await sizes()
    await live(40)
    after = await sizes()
    assert after.keys() <= before.keys()
    assert sum(after.values()) <= sum(before.values()) + 512


async def test_an_unknown_command_in_the_index_is_dropped(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"))
    keys = DeviceKeys.of("router-1")
    stranger = str(uuid4())
    record = await valkey.hget(keys.records, command["id"])
    assert record is not None
    await valkey.hset(keys.records, stranger, record)
    await valkey.zadd(keys.pending, {stranger: 1})
    claimed = [found["id"] for _ in range(2) for found in await device.claim()]
    assert claimed == [command["id"]]
    assert stranger not in await all_of_redis(valkey)


async def test_a_stale_index_never_hands_out_what_has_ended(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    keys = DeviceKeys.of("router-1")
    command = await bench.submit(session)
    record = await valkey.hget(keys.records, command["id"])
    assert record is not None
    (claimed,) = await device.claim()
    await device.report(claimed)
    await valkey.hset(keys.records, command["id"], record)
    await valkey.zadd(keys.pending, {command["id"]: 1})
    other = await bench.submit(session, priority=10)
    assert [found["id"] for found in await device.claim()] == [other["id"]]
    assert await valkey.zscore(keys.pending, command["id"]) is None


async def test_a_stale_index_never_hands_out_what_is_claimed(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("router-1")
    await bench.submit(await bench.open_session("router-1"))
    keys = DeviceKeys.of("router-1")
    (claimed,) = await device.claim()
    record = await valkey.hget(keys.records, claimed["id"])
    assert record is not None
    await valkey.zrem(keys.leased, claimed["id"])
    await valkey.zadd(keys.pending, {claimed["id"]: 1})
    assert await device.claim() == []
    answer = await device.report(claimed)
    assert (answer["duplicate"], answer["late"]) == (False, False)
