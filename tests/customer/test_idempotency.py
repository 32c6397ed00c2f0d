"""The same key on the same endpoint does it once (contract section 1, Idempotency)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import redis.asyncio
from aiohttp import ClientSession

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, CustomerClient, Reply, World, expect
from tests.support.gateway import StartGateway
from tests.support.waiting import eventually

SESSIONS = f"{API}/customer/sessions"


async def opens(who: CustomerClient, key: str, device_id: str = "edge-1", **fields: Any) -> Reply:
    body = {"deviceId": device_id, "type": "diagnostic", **fields}
    return await who.call("POST", SESSIONS, body, headers={"Idempotency-Key": key})


async def submits(who: CustomerClient, key: str, session_id: str, **fields: Any) -> Reply:
    body = {"type": "ping", **fields}
    return await who.call("POST", f"{SESSIONS}/{session_id}/commands", body, headers={"Idempotency-Key": key})


def replayed(reply: Reply) -> bool:
    assert reply.headers.get("Idempotent-Replay") in (None, "true")
    return "Idempotent-Replay" in reply.headers


async def workplace(world: World) -> str:
    await world.device("edge-1")
    return str((await world.owner.open_session("edge-1"))["id"])


async def commands(world: World, session_id: str) -> int:
    return len((await world.owner.session(session_id))["commands"])


@asynccontextmanager
async def standing_still(database: Database, session_id: str) -> AsyncIterator[None]:
    """Whatever wants to change the session waits meanwhile."""
    async with database.connection() as connection, connection.transaction():
        await connection.execute("select from aizen.sessions where id = $1 for update", UUID(session_id))
        yield


async def under_way(database: Database) -> bool:
    row = await database.fetchrow(
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
    )
    return bool(row["exists"])


async def test_the_same_call_again_brings_back_the_first_answer(world: World) -> None:
    await world.device("edge-1")
    first = await opens(world.owner, "key-1", description="Slow")
    assert (first.status, replayed(first)) == (201, False)
    for _ in range(2):
        again = await opens(world.owner, "key-1", description="Slow")
        assert (again.status, replayed(again), again.body) == (201, True, first.body)
    session_id = first.body["session"]["id"]
    command = await submits(world.owner, "key-1", session_id, parameters={"a": [1, {"b": None}], "c": 1.5})
    assert (command.status, replayed(command)) == (201, False)
    again = await submits(world.owner, "key-1", session_id, parameters={"c": 1.5, "a": [1, {"b": None}]})
    assert (again.status, replayed(again), again.body) == (201, True, command.body)
    assert await commands(world, session_id) == 1
    assert [entry["event"] for entry in await world.owner.transcript(session_id)] == [
        "session.opened",
        "command.submitted",
    ]


async def test_the_first_answer_comes_back_even_when_the_thing_has_changed_since(world: World) -> None:
    await world.device("edge-1")
    first = await opens(world.owner, "key-1")
    session_id = first.body["session"]["id"]
    command = await submits(world.owner, "key-2", session_id)
    expect(await world.owner.post(f"{SESSIONS}/{session_id}/close"), 200)
    assert (await opens(world.owner, "key-1")).body == first.body
    assert (await submits(world.owner, "key-2", session_id)).body == command.body
    assert len(expect(await world.owner.get(SESSIONS), 200)["sessions"]) == 1


async def test_another_body_under_the_same_key_is_422(world: World) -> None:
    session_id = await workplace(world)
    expect(await submits(world.owner, "key-1", session_id, parameters={"a": 1}), 201)
    for other in ({"parameters": {"a": 2}}, {}, {"parameters": {"a": 1}, "priority": 1}, {"type": "dns"}):
        reply = await submits(world.owner, "key-1", session_id, **other)
        assert (reply.status, reply.code, replayed(reply)) == (422, "IDEMPOTENCY_KEY_REUSED", False)
    assert replayed(await submits(world.owner, "key-1", session_id, parameters={"a": 1}))
    assert await commands(world, session_id) == 1


async def test_a_key_counts_for_its_endpoint_alone(world: World) -> None:
    for number in (1, 2):
        await world.device(f"edge-{number}")
    first = expect(await opens(world.owner, "key-1", "edge-1"), 201)["session"]["id"]
    second = (await world.owner.open_session("edge-2"))["id"]
    for session_id in (first, second):
        reply = await submits(world.owner, "key-1", session_id)
        assert (reply.status, replayed(reply)) == (201, False)


async def test_a_key_is_the_customers_whoever_of_them_uses_it(world: World) -> None:
    session_id = await workplace(world)
    first = await submits(world.owner, "key-1", session_id)
    for who in (world.admin, world.service):
        again = await submits(who, "key-1", session_id)
        assert (replayed(again), again.body) == (True, first.body)
    other = await world.another()
    await other.device("theirs-1")
    expect(await opens(world.owner, "key-2"), 409)
    assert not replayed(await opens(other.owner, "key-1", "theirs-1"))
    refused = await submits(world.viewer, "key-1", session_id)
    assert (refused.status, refused.code) == (403, "FORBIDDEN")


async def test_the_same_key_at_two_customers_is_two_keys(world: World) -> None:
    other = await world.another()
    await world.device("ours-1")
    await other.device("theirs-1")
    ours = await opens(world.owner, "key-1", "ours-1")
    theirs = await opens(other.owner, "key-1", "theirs-1")
    assert (ours.status, theirs.status, replayed(theirs)) == (201, 201, False)
    assert ours.body["session"]["id"] != theirs.body["session"]["id"]


async def test_failures_are_not_kept(world: World) -> None:
    session_id = await workplace(world)
    taken = await opens(world.owner, "key-1")
    assert (taken.status, taken.code) == (409, "SESSION_ACTIVE")
    expect(await world.owner.post(f"{SESSIONS}/{session_id}/close"), 200)
    opened = await opens(world.owner, "key-1")
    assert (opened.status, replayed(opened)) == (201, False)
    new_id = opened.body["session"]["id"]
    closed = await submits(world.owner, "key-2", session_id)
    assert (closed.status, closed.code) == (409, "SESSION_CLOSED")
    bad = await submits(world.owner, "key-2", new_id, priority=99)
    assert bad.status == 400
    # Another body, which is fine after failures.
    good = await submits(world.owner, "key-2", new_id, priority=9)
    assert (good.status, replayed(good)) == (201, False)
    missing = await opens(world.owner, "key-3", "edge-2")
    assert missing.status == 404
    await world.device("edge-2")
    expect(await opens(world.owner, "key-3", "edge-2"), 201)


async def test_a_call_without_a_key_is_done_every_time(world: World) -> None:
    session_id = await workplace(world)
    for _ in range(2):
        reply = await world.owner.post(f"{SESSIONS}/{session_id}/commands", {"type": "ping"})
        assert (reply.status, replayed(reply)) == (201, False)
    assert await commands(world, session_id) == 2


async def test_a_key_is_1_to_128_printable_characters(world: World) -> None:
    session_id = await workplace(world)
    for good in ("a", "x" * 128, "a b", "~!@#$%^&*()_+{}|:<>?", "0"):
        expect(await submits(world.owner, good, session_id), 201)
    for bad in ("", "x" * 129, "\u00e9", "a\tb"):
        reply = await submits(world.owner, bad, session_id)
        assert (reply.status, reply.code, list(reply.fields)) == (400, "INVALID_REQUEST", ["Idempotency-Key"]), bad
    assert await commands(world, session_id) == 5


async def test_while_the_first_call_is_under_way_another_is_409_on_every_instance(
    world: World, start_gateway: StartGateway, database: Database
) -> None:
    session_id = await workplace(world)
    elsewhere = replace(world.owner, url=(await start_gateway()).url)
    async with standing_still(database, session_id):
        first = asyncio.create_task(submits(world.owner, "key-1", session_id))
        await eventually(lambda: under_way(database), bool)
        for who in (world.owner, elsewhere):
            for body in ({}, {"priority": 1}):
                reply = await submits(who, "key-1", session_id, **body)
                assert (reply.status, reply.code) == (409, "IDEMPOTENCY_IN_PROGRESS")
                assert int(reply.headers["Retry-After"]) >= 1
    command = expect(await first, 201)
    for who in (world.owner, elsewhere):
        again = await submits(who, "key-1", session_id)
        assert (replayed(again), again.body) == (True, command)


async def test_of_many_calls_at_once_on_two_instances_one_does_it(world: World, start_gateway: StartGateway) -> None:
    session_id = await workplace(world)
    elsewhere = replace(world.owner, url=(await start_gateway()).url)

    async def insists(who: CustomerClient, key: str) -> Reply:
        return await eventually(
            lambda: submits(who, key, session_id), lambda reply: reply.code != "IDEMPOTENCY_IN_PROGRESS"
        )

    for number in range(3):
        replies = await asyncio.gather(*(insists(who, f"key-{number}") for who in [world.owner, elsewhere] * 5))
        assert {reply.status for reply in replies} == {201}
        assert len({reply.body["command"]["id"] for reply in replies}) == 1
        assert [replayed(reply) for reply in replies].count(False) == 1
    assert await commands(world, session_id) == 3


async def test_losing_all_of_redis_loses_no_key(world: World, redis_url: str) -> None:
    session_id = await workplace(world)
    first = await submits(world.owner, "key-1", session_id)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.flushall()
    again = await submits(world.owner, "key-1", session_id)
    assert (again.status, replayed(again), again.body) == (201, True, first.body)
    assert (await submits(world.owner, "key-1", session_id, priority=1)).code == "IDEMPOTENCY_KEY_REUSED"
    assert await commands(world, session_id) == 1


async def test_a_key_outlives_the_instance_that_took_it(
    world: World, start_gateway: StartGateway, http: ClientSession
) -> None:
    first_gateway = await start_gateway()
    session_id = await workplace(world)
    first = await submits(replace(world.owner, url=first_gateway.url), "key-1", session_id)
    await first_gateway.stop()
    again = await submits(world.owner, "key-1", session_id)
    assert (replayed(again), again.body) == (True, first.body)


async def test_a_key_counts_for_24_hours_and_no_longer(world: World, database: Database) -> None:
    session_id = await workplace(world)
    expect(await submits(world.owner, "kept", session_id), 201)
    expect(await submits(world.owner, "over", session_id), 201)
    age = "update aizen.idempotency set created_at = now() - $2::text::interval where key = $1"
    await database.execute(age, "kept", "23 hours 59 minutes")
    await database.execute(age, "over", "24 hours 1 second")
    assert replayed(await submits(world.owner, "kept", session_id))
    again = await submits(world.owner, "over", session_id, priority=1)
    assert (again.status, replayed(again)) == (201, False)
    assert replayed(await submits(world.owner, "over", session_id, priority=1))


async def test_a_session_written_in_capitals_is_the_same_endpoint(world: World) -> None:
    device = await world.device()
    session_id = (await world.owner.open_session(device.device_id))["id"]
    first = await submits(world.owner, "key-1", session_id)
    again = await submits(world.owner, "key-1", session_id.upper())
    assert (first.status, again.status, replayed(again)) == (201, 201, True)
    assert again.body == first.body


async def test_one_and_one_point_nought_are_the_same_number_in_a_body(world: World) -> None:
    device = await world.device()
    session_id = (await world.owner.open_session(device.device_id))["id"]
    first = await submits(world.owner, "key-1", session_id, parameters={"count": 1})
    again = await submits(world.owner, "key-1", session_id, parameters={"count": 1.0})
    assert (again.status, replayed(again)) == (201, True)
    assert again.body == first.body
