"""Processes and servers die, hang and come back; what was answered counts, once, and service resumes by itself.

Each test has real processes of its own; what is killed or paused is never the worker's own server. What many clients
see of faults under load is checked by `scripts/chaos`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import API, CustomerClient, DeviceClient, Reply, World, expect
from tests.support.outages import crash, hung
from tests.support.processes import GatewayProcess, StartGatewayProcess
from tests.support.servers import FreshPostgres, FreshValkey
from tests.support.waiting import eventually

# Within this many seconds after its servers are back an instance serves again, without a restart.
RECOVERS_S = 10.0
_CLAIM = f"{API}/device/commands/claim"


@dataclass(slots=True)
class Site:
    """Two instances on servers of their own, and one device with an open session."""

    valkey: EmbeddedValkey
    postgres_url: str
    postgres: EmbeddedPostgres | None
    instances: Sequence[GatewayProcess]
    world: World
    device: DeviceClient
    session: str

    def device_at(self, number: int) -> DeviceClient:
        """The device, calling that instance."""
        device = self.device
        return DeviceClient(device.http, self.instances[number].url, device.headers, device.device_id, device.secret)

    def owner_at(self, number: int) -> CustomerClient:
        owner = self.world.owner
        return CustomerClient(owner.http, self.instances[number].url, owner.headers, owner.user_id)

    async def command(self, type: str = "ping", **fields: Any) -> Any:
        """A command that can be claimed, approved where it needs that."""
        command = await self.world.owner.submit(self.session, type, **fields)
        if command["status"] == "pending_approval":
            expect(await self.world.admin.decide(self.session, commandId=command["id"]), 200)
        return command


BuildSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def build_site(
    start_gateway_process: StartGatewayProcess,
    fresh_valkey: FreshValkey,
    fresh_postgres: FreshPostgres,
    database_url: str,
    http: ClientSession,
) -> AsyncIterator[BuildSite]:
    """Call it for a site with a Valkey of its own and, when `own_postgres`, a PostgreSQL too."""
    async with AsyncExitStack() as stack:

        async def build(*, own_postgres: bool = False) -> Site:
            valkey = await fresh_valkey()
            postgres = await fresh_postgres() if own_postgres else None
            url = postgres.url if postgres else database_url
            instances = await asyncio.gather(
                *(start_gateway_process(DATABASE_URL=url, REDIS_URL=valkey.url) for _ in range(2))
            )
            database = Database(PostgresOptions(url, pool_size=2))
            stack.push_async_callback(database.close)
            world = await World.create(instances[0].url, http, database)
            device = await world.device()
            expect(await device.heartbeat(), 200)
            session = await world.owner.open_session(device.device_id)
            return Site(valkey, url, postgres, instances, world, device, session["id"])

        yield build


def unavailable(reply: Reply) -> None:
    """The answer of an instance without one of its servers."""
    assert (reply.status, reply.code) == (503, "UNAVAILABLE"), f"{reply.status}: {reply.body}"
    assert int(reply.headers["Retry-After"]) > 0


async def claims_again(device: DeviceClient, within: float = RECOVERS_S) -> Any:
    """The next command of the device, which may meanwhile get nothing, or be told to come again or to sign in."""

    async def claim() -> list[Any]:
        reply = await device.post(_CLAIM, {"visibilityTimeout": 60_000})
        if reply.status == 401:
            signed_in = await device.sign_in()
            if signed_in.status != 200:
                unavailable(signed_in)
        elif reply.status == 200:
            return list(reply.body["commands"])
        else:
            unavailable(reply)
        return []

    (claimed,) = await eventually(claim, bool, within=within)
    return claimed


async def works_again(site: Site) -> None:
    """The whole way of a command, at both instances, in time."""

    async def submitted() -> Reply:
        return await site.owner_at(1).post(f"{API}/customer/sessions/{site.session}/commands", {"type": "dns"})

    expect(await eventually(submitted, lambda reply: reply.status == 201, within=RECOVERS_S), 201)
    device = site.device_at(0)
    claimed = await claims_again(device)
    assert claimed["type"] == "dns"
    expect(await device.report(claimed), 200)


async def test_what_an_instance_had_answered_before_it_was_killed_is_served_by_another(build_site: BuildSite) -> None:
    site = await build_site()
    owner, device = site.owner_at(0), site.device_at(0)
    for _ in range(3):
        await owner.submit(site.session, "ping", parameters={"host": "done"})
    reported = [command for _ in range(3) for command in await device.claim()]
    for command in reported:
        expect(await device.report(command, output="done"), 200)
    waiting = [await owner.submit(site.session, "dns") for _ in range(3)]
    (leased,) = await device.claim()
    await site.instances[0].run.kill()

    owner, device = site.owner_at(1), site.device_at(1)
    commands = {command["id"]: command for command in (await owner.session(site.session))["commands"]}
    for command in reported:
        assert commands[command["id"]]["status"] == "succeeded"
        assert commands[command["id"]]["result"]["output"] == "done"
    # The lease stands: its holder answers elsewhere, and nobody else gets the command.
    rest = [await claims_again(device) for _ in range(2)]
    assert [command["id"] for command in (leased, *rest)] == [command["id"] for command in waiting]
    assert await device.claim() == []
    expect(await device.report(leased), 200)


async def test_a_command_whose_instance_died_between_commit_and_dispatch_is_delivered_by_another(
    build_site: BuildSite,
) -> None:
    site = await build_site()
    database = site.world.database
    async with database.unit() as connection:
        # The submission has asked Redis all it needs, and waits for the session's row.
        await connection.execute("select from aizen.sessions where id = $1 for update", site.session)
        submission = asyncio.create_task(site.owner_at(0).submit(site.session, "ping"))
        waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        await eventually(lambda: database.fetch(waiting), bool)
        outage = hung(site.valkey)
        outage.__enter__()
    try:
        (row,) = await eventually(lambda: database.fetch("select id from aizen.commands"), bool)
        await site.instances[0].run.kill()
        with pytest.raises(ClientError):
            await submission
    finally:
        outage.__exit__(None, None, None)
    claimed = await claims_again(site.device_at(1))
    assert claimed["id"] == str(row["id"])
    await eventually(lambda: database.fetch("select from aizen.outbox"), lambda rows: not rows)


async def test_what_a_dead_instance_had_told_already_is_told_again_without_harm(world: World) -> None:
    device = await world.device()
    expect(await device.heartbeat(), 200)
    database = world.database
    left = """
        insert into aizen.outbox (subject, subject_id, change, created_at)
        select 'device', uid, 'registered', now() - interval '1 minute' from aizen.devices
    """
    await database.execute(left)
    await eventually(lambda: database.fetch("select from aizen.outbox"), lambda rows: not rows)
    # Its sessions were ended when it registered, not when somebody heard of it.
    expect(await device.heartbeat(), 200)


async def _everything(site: Site, claimed: Mapping[str, Any]) -> dict[str, Reply]:
    """Every kind of call, at once."""
    owner, device = site.owner_at(1), site.device_at(1)
    sessions = f"{API}/customer/sessions"
    calls = {
        "auth": device.post(f"{API}/device/auth", {"deviceId": device.device_id, "deviceSecret": device.secret}),
        "register": device.post(f"{API}/device/register", {"deviceId": "router", "activationCode": "AAAAA-AAAAA"}),
        "heartbeat": device.heartbeat(),
        "claim": device.post(_CLAIM, {}),
        "poll": device.post(_CLAIM, {"waitMs": 1000}),
        "extend": device.extend(claimed),
        "report": device.report(claimed),
        "release": device.release(claimed),
        "read": device.read(claimed["id"]),
        "devices": owner.get(f"{API}/customer/devices"),
        "provision": owner.post(f"{API}/customer/devices/provision", {"deviceId": "router-2"}),
        "open": owner.post(sessions, {"deviceId": device.device_id, "type": "diagnostic"}),
        "session": owner.get(f"{sessions}/{site.session}"),
        "submit": owner.post(f"{sessions}/{site.session}/commands", {"type": "ping"}),
        "suspend": owner.post(f"{API}/customer/devices/{device.device_id}/suspend", {}),
        "audit": owner.get(f"{API}/customer/audit"),
    }
    return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))


async def test_without_valkey_every_call_is_told_to_come_again_and_nothing_is_half_done(
    build_site: BuildSite,
) -> None:
    site = await build_site()
    command = await site.command()
    (claimed,) = await site.device.claim()
    before = await site.world.owner.session(site.session)
    await crash(site.valkey)
    for reply in (await _everything(site, claimed)).values():
        unavailable(reply)
    await site.valkey.restart()
    await works_again(site)
    after = await site.world.owner.session(site.session)
    assert len(after["commands"]) == 2
    assert next(found for found in after["commands"] if found["id"] == command["id"]) == before["commands"][0]
    assert expect(await site.world.owner.get(f"{API}/customer/devices"), 200)["total"] == 1


async def test_a_valkey_that_comes_back_empty_gets_every_open_command_again_and_none_twice(
    build_site: BuildSite,
) -> None:
    site = await build_site()
    device = site.device
    held = await site.command("ping", priority=1)
    once = await site.command("restart_dhcp", priority=1)
    claimed = await device.claim(limit=2, visibilityTimeout=60_000)
    assert {command["id"] for command in claimed} == {held["id"], once["id"]}
    # Handed back: it waits again, and has not been delivered.
    returned = await site.command("flush_dns", priority=2)
    (released,) = await device.claim()
    expect(await device.release(released), 200)
    waiting = [await site.command("ping", priority=priority) for priority in (9, 3, 5)]

    await crash(site.valkey)
    await site.valkey.restart()
    # Its session is gone with everything else in Redis, so the device signs in again.
    again = [await claims_again(device) for _ in range(4)]
    by_priority = sorted(waiting, key=lambda command: int(command["priority"]))
    assert [command["id"] for command in again] == [returned["id"], *(command["id"] for command in by_priority)]
    # Those that were leased stay with their holder, who may still answer.
    assert await device.claim(waitMs=1000) == []
    for command in claimed:
        assert expect(await device.report(command), 200)["late"] is False


async def test_a_long_poll_that_waits_through_a_short_silence_still_gets_its_command(build_site: BuildSite) -> None:
    site = await build_site()
    poll = asyncio.create_task(site.device_at(0).post(_CLAIM, {"waitMs": 20_000}))
    with hung(site.valkey):
        await asyncio.sleep(1.0)
    command = await eventually(
        lambda: site.owner_at(1).post(f"{API}/customer/sessions/{site.session}/commands", {"type": "ping"}),
        lambda reply: reply.status == 201,
    )
    async with asyncio.timeout(RECOVERS_S):
        reply = await poll
    assert [found["id"] for found in expect(reply, 200)["commands"]] == [command.body["command"]["id"]]


async def test_without_postgresql_empty_claims_and_heartbeats_go_on_and_the_rest_is_told_to_come_again(
    build_site: BuildSite,
) -> None:
    site = await build_site(own_postgres=True)
    assert site.postgres is not None
    command = await site.command()
    (claimed,) = await site.device.claim()
    await crash(site.postgres)
    replies = await _everything(site, claimed)
    for call in ("heartbeat", "claim", "poll"):
        expect(replies.pop(call), 200)
    for reply in replies.values():
        unavailable(reply)
    # A change of presence is written when there is something to write it to.
    expect(await site.device.heartbeat("error"), 200)
    await site.postgres.restart()
    await works_again(site)
    assert (await site.world.owner.command(command))["status"] == "claimed"
    expect(await site.device.report(claimed), 200)
    owner, device_id = site.world.owner, site.device.device_id
    await eventually(lambda: owner.status(device_id), lambda device: device["status"] == "error")


async def test_a_claim_that_postgresql_could_not_confirm_is_given_back(build_site: BuildSite) -> None:
    site = await build_site(own_postgres=True)
    assert site.postgres is not None
    once = await site.command("restart_dhcp")
    await crash(site.postgres)
    for number in (0, 1, 0):
        unavailable(await site.device_at(number).post(_CLAIM, {}))
    await site.postgres.restart()
    claimed = await claims_again(site.device_at(1))
    assert (claimed["id"], claimed["attempt"]) == (once["id"], 1)


async def test_a_postgresql_that_hangs_for_seconds_loses_no_command_and_doubles_none(build_site: BuildSite) -> None:
    site = await build_site(own_postgres=True)
    assert site.postgres is not None
    commands = f"{API}/customer/sessions/{site.session}/commands"
    # The server has heard it all before: it needs no second look at what it will be told.
    for _ in range(4):
        expect(await site.owner_at(1).post(commands, {"type": "arp"}), 201)
        (claimed,) = await site.device_at(0).claim()
        expect(await site.device_at(0).report(claimed), 200)
    once = await site.command("restart_dhcp")
    key = {"Idempotency_Key": "once"}
    with hung(site.postgres):
        # What is sent into the silence may be done when nobody waits for it any more.
        claim, submission = await asyncio.gather(
            site.device_at(0).post(_CLAIM, {}), site.owner_at(1).post(commands, {"type": "ping"}, **key)
        )
        unavailable(claim)
        unavailable(submission)
    device = site.device_at(1)
    claimed = await claims_again(device)
    assert (claimed["id"], claimed["attempt"]) == (once["id"], 1)
    # Sent again with its key, the submission is done once, whatever became of the first.
    for _ in range(2):
        expect(await site.owner_at(0).post(commands, {"type": "ping"}, **key), 201)
    assert (await claims_again(device))["type"] == "ping"
    assert await device.claim() == []
    session = await site.world.owner.session(site.session)
    assert Counter(command["type"] for command in session["commands"]) == {"arp": 4, "restart_dhcp": 1, "ping": 1}


async def test_a_result_whose_answer_was_lost_is_taken_once(build_site: BuildSite) -> None:
    site = await build_site()
    command = await site.command("restart_dhcp")
    (claimed,) = await site.device.claim()
    database = site.world.database
    async with database.unit() as connection:
        await connection.execute("select from aizen.commands where id = $1 for update", command["id"])
        report = asyncio.create_task(site.device_at(0).report(claimed, output="done"))
        waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        await eventually(lambda: database.fetch(waiting), bool)
        await site.instances[0].run.kill()
    with pytest.raises(ClientError):
        await report
    device = site.device_at(1)
    first = expect(await device.report(claimed, output="done"), 200)
    assert first["status"] == "succeeded"
    assert expect(await device.report(claimed, output="done"), 200)["duplicate"] is True
    assert (await site.owner_at(1).command(command))["result"]["output"] == "done"
    assert await device.claim() == []


async def test_a_dependency_that_is_away_is_logged_but_does_not_flood_the_log(build_site: BuildSite) -> None:
    site = await build_site()
    lines = len(site.instances[1].run.lines)
    await crash(site.valkey)
    reply = await site.device_at(1).post(_CLAIM, {}, X_Request_ID="outage-1")
    unavailable(reply)
    # As long as it takes to say it several times.
    await asyncio.sleep(1.5)
    said = site.instances[1].run.entries[lines:]
    about = [entry for entry in said if entry.get("request_id") == "outage-1"]
    assert [entry["event"] for entry in about] == ["unavailable", "request"]
    assert len(said) < 30
