"""Long polls: answered as soon as there is something, on whichever instance it happens (contract section 3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from aizen_gateway.storage.keys import DeviceKeys
from tests.support.bench import Bench
from tests.support.clients import API, DeviceClient, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.inside import waits
from tests.support.line import Line

LONG = 30_000
# Seconds: far less than the poll would wait, far more than the news takes.
PROMPTLY = 10


async def promptly(poll: asyncio.Task[list[Any]]) -> list[Any]:
    """What the poll brings; fails when it goes on waiting."""
    async with asyncio.timeout(PROMPTLY):
        return await poll


async def polling(device: DeviceClient, valkey: Redis, **fields: Any) -> asyncio.Task[list[Any]]:
    """A long poll that is under way and listens."""
    poll = asyncio.create_task(device.claim(waitMs=LONG, **fields))
    await waits(valkey, device.device_id)
    return poll


async def test_a_poll_that_nothing_answers_is_empty_when_its_time_is_up(line: Line) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert expect(await line.device.post(f"{API}/device/commands/claim", {"waitMs": 300}), 200) == {"commands": []}
    assert loop.time() - start >= 0.3


async def test_a_poll_for_what_is_there_does_not_wait(line: Line) -> None:
    command = await line.submit()
    async with asyncio.timeout(PROMPTLY):
        (claimed,) = await line.device.claim(waitMs=LONG, limit=10)
    assert claimed["id"] == command["id"]


async def test_a_poll_is_answered_when_a_command_is_submitted_at_another_instance(
    line: Line, start_gateway: StartGateway, valkey: Redis
) -> None:
    poll = await polling(line.at(await start_gateway()), valkey, limit=10)
    command = await line.submit()
    (claimed,) = await promptly(poll)
    assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)


async def test_a_poll_is_answered_when_a_command_is_approved(line: Line, valkey: Redis) -> None:
    command = await line.submit("restart_dhcp")
    poll = await polling(line.device, valkey)
    expect(await line.world.admin.decide(line.session_id, commandId=command["id"]), 200)
    (claimed,) = await promptly(poll)
    assert claimed["id"] == command["id"]


async def test_a_poll_is_answered_when_a_session_is_approved(line: Line, valkey: Redis) -> None:
    device = await line.world.device()
    session = await line.world.service.open_session(device.device_id)
    command = await line.world.service.submit(session["id"])
    poll = await polling(device, valkey)
    expect(await line.world.owner.decide(session["id"]), 200)
    (claimed,) = await promptly(poll)
    assert claimed["id"] == command["id"]


async def test_a_poll_is_answered_when_a_command_is_released(line: Line, valkey: Redis) -> None:
    held = await line.claimed()
    poll = await polling(line.device, valkey)
    expect(await line.device.release(held), 200)
    (claimed,) = await promptly(poll)
    assert (claimed["id"], claimed["attempt"]) == (held["id"], 1)


async def test_a_poll_is_answered_when_a_lease_runs_out(line: Line) -> None:
    await line.submit()
    (held,) = await line.device.claim(visibilityTimeout=1000)
    poll = asyncio.create_task(line.device.claim(waitMs=LONG))
    (claimed,) = await promptly(poll)
    assert (claimed["id"], claimed["attempt"]) == (held["id"], 2)


async def test_a_poll_is_answered_when_a_lease_is_shortened_at_another_instance(
    line: Line, start_gateway: StartGateway, valkey: Redis
) -> None:
    held = await line.claimed()
    poll = await polling(line.device, valkey)
    expect(await line.at(await start_gateway()).extend(held, extensionMs=1000), 200)
    (claimed,) = await promptly(poll)
    assert (claimed["id"], claimed["attempt"]) == (held["id"], 2)


async def test_who_waits_for_a_lease_is_told_when_it_ends_sooner(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("poll-sooner")
    await bench.submit(await bench.open_session(device.device_id))
    (claimed,) = await device.claim(visibility_ms=60_000)
    async with valkey.pubsub() as hints:
        await hints.subscribe(DeviceKeys.of(device.device_id).channel)
        for extension_ms in (90_000, 30_000):
            await device.extend(claimed, extension_ms)
        await valkey.publish(DeviceKeys.of(device.device_id).channel, "end")
        heard = []
        async for message in hints.listen():
            if message["type"] == "message":
                heard.append(message["data"])
                if heard[-1] == "end":
                    break
    assert heard == ["wake ", "end"]


async def test_one_of_many_polls_gets_a_command_and_the_others_go_on_waiting(
    line: Line, start_gateway: StartGateway, valkey: Redis
) -> None:
    second = line.at(await start_gateway())
    polls = [await polling(device, valkey) for device in (line.device, second) for _ in range(3)]
    for left in range(6, 0, -1):
        command = await line.submit()
        done, waiting = await asyncio.wait(polls, timeout=PROMPTLY, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting)) == (1, left - 1)
        polls = list(waiting)
        (claimed,) = done.pop().result()
        assert claimed["id"] == command["id"]


async def test_many_commands_at_once_answer_many_polls_with_one_each(line: Line, valkey: Redis) -> None:
    polls = [await polling(line.device, valkey) for _ in range(5)]
    submitted = {command["id"] for command in await asyncio.gather(*(line.submit() for _ in range(5)))}
    claimed = [await promptly(poll) for poll in polls]
    assert {found["id"] for (found,) in claimed} == submitted


async def test_a_poll_counts_as_one_call_against_the_devices_limit(start_world: StartWorld, valkey: Redis) -> None:
    line = await Line.open(await start_world(AIZEN_RATE_LIMIT_DEVICE="3"))
    poll = await polling(line.device, valkey)
    for _ in range(20):
        await valkey.publish(f"aizen:{{{line.device.device_id}}}:channel", "wake")
    command = await line.submit()
    (claimed,) = await promptly(poll)
    assert claimed["id"] == command["id"]
    assert await line.device.claim() == []
    assert await line.device.claim() == []
    assert (await line.device.heartbeat()).code == "RATE_LIMITED"


async def test_a_poll_is_not_ended_by_news_that_bring_nothing(line: Line, valkey: Redis) -> None:
    poll = await polling(line.device, valkey)
    for _ in range(5):
        await valkey.publish(f"aizen:{{{line.device.device_id}}}:channel", "wake")
    unapproved = await line.submit("restart_dhcp")
    expect(await line.world.owner.cancel(unapproved), 200)
    done, _ = await asyncio.wait([poll], timeout=0.3)
    assert not done
    command = await line.submit()
    assert (await promptly(poll))[0]["id"] == command["id"]


async def test_a_poll_outlives_a_subscriber_connection_that_was_cut(line: Line, valkey: Redis) -> None:
    poll = await polling(line.device, valkey)
    await valkey.client_kill_filter(_type="pubsub")
    command = await line.submit()
    (claimed,) = await promptly(poll)
    assert claimed["id"] == command["id"]


@asynccontextmanager
async def raw_poll(device: DeviceClient) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A long poll over a connection that the test holds in its own hands."""
    url = urlsplit(device.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    raw = json.dumps({"waitMs": LONG}).encode()
    head = (
        f"POST {API}/device/commands/claim HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"X-Device-Token: {device.token}\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    writer.write(head.encode() + raw)
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_client_that_has_gone_claims_nothing(line: Line, valkey: Redis, how: str) -> None:
    async with raw_poll(line.device) as (_, writer):
        await waits(valkey, line.device.device_id)
        if how == "resets":
            writer.transport.abort()
    command = await line.submit()
    (claimed,) = await line.device.claim(waitMs=LONG)
    assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
    assert (await line.seen(command))["status"] == "claimed"


async def test_a_client_that_goes_as_its_command_comes_loses_no_delivery(line: Line, valkey: Redis) -> None:
    """Whatever the order in which the two are seen, a remediation is not used up by a client that was not there."""
    for _ in range(5):
        command = await line.submit("restart_dhcp")
        async with raw_poll(line.device) as (_, writer):
            await waits(valkey, line.device.device_id)
            decided = asyncio.create_task(line.world.admin.decide(line.session_id, commandId=command["id"]))
            writer.transport.abort()
            expect(await decided, 200)
        (claimed,) = await line.device.claim(waitMs=LONG)
        assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
        expect(await line.device.report(claimed), 200)


async def test_a_poll_and_a_claim_beside_it_get_different_commands(
    line: Line, start_gateway: StartGateway, valkey: Redis
) -> None:
    poll = await polling(line.device, valkey, limit=10)
    elsewhere = replace(line.device, url=(await start_gateway()).url)
    submitted = {(await line.submit())["id"] for _ in range(5)}
    beside = await elsewhere.claim(limit=10)
    polled = await promptly(poll)
    got = [claimed["id"] for claimed in beside + polled]
    got += [claimed["id"] for claimed in await elsewhere.claim(limit=10)]
    assert sorted(got) == sorted(submitted)


async def test_a_client_that_went_while_its_claim_was_written_leaves_the_command_untouched(bench: Bench) -> None:
    """The answer cannot be delivered any more: the command goes back to its place, and no delivery is counted."""
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    first = await bench.approve(await bench.submit(session, "restart_dhcp"))
    second = await bench.submit(session)
    assert await device.claim(limit=10, connected=lambda: False) == []
    # What has begun is waited for.
    await bench.parts.returns.close()
    for command in (first, second):
        seen = await bench.command(command)
        assert (seen["status"], seen["attempt"]) == ("queued", 0)
    claimed = await device.claim(limit=10)
    assert [(found["id"], found["attempt"]) for found in claimed] == [(first["id"], 1), (second["id"], 1)]
