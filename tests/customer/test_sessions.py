"""Diagnostic sessions from their opening to their end (contract section 4)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from tests.support.clients import API, CustomerClient, World, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.waiting import TIME, eventually, until_past

SESSIONS = f"{API}/customer/sessions"
REMEDIATION = "restart_service"


async def opened(who: CustomerClient, device_id: str, type: str = "diagnostic", **fields: Any) -> Any:
    return await who.post(SESSIONS, {"deviceId": device_id, "type": type, **fields})


async def closed(world: World, session: Any) -> Any:
    return expect(await world.owner.post(f"{SESSIONS}/{session['id']}/close"), 200)["session"]


@pytest.fixture
async def brief_world(start_world: StartWorld) -> World:
    """A customer at a gateway whose sessions last 2 s."""
    return await start_world(AIZEN_SESSION_TTL="2")


# Opening


async def test_a_diagnostic_session_that_a_person_opens_is_active_at_once(world: World) -> None:
    await world.device("edge-1")
    session = expect(await opened(world.admin, "edge-1", description="Slow uplink"), 201)["session"]
    assert session == {
        "id": session["id"],
        "deviceId": "edge-1",
        "type": "diagnostic",
        "status": "active",
        "description": "Slow uplink",
        "createdBy": world.admin.user_id,
        "createdAt": session["createdAt"],
        "expiresAt": session["expiresAt"],
        "commands": [],
    }
    assert TIME.fullmatch(session["createdAt"])
    assert TIME.fullmatch(session["expiresAt"])
    assert await world.owner.session(session["id"]) == session


async def test_a_remediation_session_and_any_that_a_service_opens_wait_for_approval(world: World) -> None:
    for number, (who, kind) in enumerate(
        [(world.owner, "remediation"), (world.service, "diagnostic"), (world.service, "remediation")]
    ):
        await world.device(f"edge-{number}")
        session = await who.open_session(f"edge-{number}", kind)
        assert (session["status"], session["type"]) == ("pending_approval", kind)
        assert "approval" not in session
    assert session["createdBy"] == "service"


async def test_a_session_lasts_an_hour(world: World) -> None:
    await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    lasts = datetime.fromisoformat(session["expiresAt"]) - datetime.fromisoformat(session["createdAt"])
    assert lasts.total_seconds() == 3600


async def test_a_device_has_one_open_session_waiting_ones_included(world: World) -> None:
    await world.device("edge-1")
    for kind in ("diagnostic", "remediation"):
        first = await world.owner.open_session("edge-1", kind)
        for another in ("diagnostic", "remediation"):
            refused = await opened(world.service, "edge-1", another)
            assert (refused.status, refused.code) == (409, "SESSION_ACTIVE")
            assert refused.body["error"]["details"] == {"sessionId": first["id"]}
        await closed(world, first)
    await world.owner.open_session("edge-1")


async def test_of_many_that_open_a_session_at_once_one_wins(world: World, start_gateway: StartGateway) -> None:
    await world.device("edge-1")
    elsewhere = (await start_gateway()).url
    callers = [world.owner, world.admin, world.service]
    callers += [replace(caller, url=elsewhere) for caller in callers]
    replies = await asyncio.gather(*(opened(caller, "edge-1") for caller in callers))
    (winner,) = [reply.body["session"]["id"] for reply in replies if reply.status == 201]
    losers = [reply for reply in replies if reply.status != 201]
    assert {(reply.status, reply.code) for reply in losers} == {(409, "SESSION_ACTIVE")}
    assert {reply.body["error"]["details"]["sessionId"] for reply in losers} == {winner}


async def test_a_session_with_a_device_that_does_not_exist_is_404(world: World) -> None:
    refused = await opened(world.owner, "nowhere-1")
    assert (refused.status, refused.code) == (404, "DEVICE_NOT_FOUND")


async def test_a_session_that_makes_no_sense_is_400_and_names_why(world: World) -> None:
    await world.device("edge-1")
    good = {"deviceId": "edge-1", "type": "diagnostic"}
    for wrong, fields in (
        ({}, {"deviceId", "type"}),
        ({**good, "type": "both"}, {"type"}),
        ({**good, "type": None}, {"type"}),
        ({**good, "deviceId": "a b"}, {"deviceId"}),
        ({**good, "description": 5}, {"description"}),
        ({**good, "description": "x" * 2001}, {"description"}),
        ({**good, "commands": []}, {"commands"}),
    ):
        reply = await world.owner.post(SESSIONS, wrong)
        assert (reply.status, reply.code, set(reply.fields)) == (400, "INVALID_REQUEST", fields), wrong
    assert expect(await world.owner.get(SESSIONS), 200)["sessions"] == []
    session = await world.owner.open_session("edge-1", description="a\x00b")
    assert session["description"] == "a\ufffdb"


async def test_a_session_of_either_type_may_hold_both_kinds_of_command(world: World) -> None:
    for number, kind in enumerate(("diagnostic", "remediation")):
        await world.device(f"edge-{number}")
        session = await world.owner.open_session(f"edge-{number}", kind)
        for wanted in ("ping", REMEDIATION):
            await world.owner.submit(session["id"], wanted)
        kinds = [command["kind"] for command in (await world.owner.session(session["id"]))["commands"]]
        assert kinds == ["diagnostic", "remediation"]


# Reading


async def test_sessions_are_listed_newest_first_and_filtered_by_status_and_device(world: World) -> None:
    for number in (1, 2):
        await world.device(f"edge-{number}")
    ended = await world.owner.open_session("edge-1")
    await closed(world, ended)
    waiting = await world.owner.open_session("edge-1", "remediation")
    active = await world.owner.open_session("edge-2")
    await world.owner.submit(active["id"])

    async def found(query: str = "") -> list[str]:
        return [session["id"] for session in expect(await world.viewer.get(f"{SESSIONS}{query}"), 200)["sessions"]]

    assert await found() == [active["id"], waiting["id"], ended["id"]]
    assert await found("?status=completed") == [ended["id"]]
    assert await found("?status=active") == [active["id"]]
    assert await found("?deviceId=edge-1") == [waiting["id"], ended["id"]]
    assert await found("?deviceId=edge-1&status=pending_approval") == [waiting["id"]]
    assert await found("?deviceId=edge-2&status=pending_approval") == []
    refused = await world.owner.get(f"{SESSIONS}?status=open")
    assert (refused.status, list(refused.fields)) == (400, ["status"])
    body = expect(await world.viewer.get(SESSIONS), 200)
    assert set(body) == {"sessions", "nextCursor"}
    assert "commands" not in body["sessions"][0]


async def test_a_session_shows_its_commands_in_the_order_they_came(world: World) -> None:
    await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    wanted = [(await world.owner.submit(session["id"], priority=10 - n))["id"] for n in range(5)]
    assert [command["id"] for command in (await world.owner.session(session["id"]))["commands"]] == wanted


# The end


async def test_closing_completes_a_session_and_cancels_its_open_commands(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    done = await world.owner.submit(session["id"])
    await device.report((await device.claim())[0])
    running = await world.owner.submit(session["id"])
    claimed = (await device.claim())[0]
    queued = await world.owner.submit(session["id"])
    proposed = await world.owner.submit(session["id"], REMEDIATION)
    ended = await closed(world, session)
    assert ended["status"] == "completed"
    assert TIME.fullmatch(ended["closedAt"])
    assert {command["id"]: command["status"] for command in ended["commands"]} == {
        done["id"]: "succeeded",
        running["id"]: "cancel_requested",
        queued["id"]: "canceled",
        proposed["id"]: "canceled",
    }
    assert await world.owner.session(session["id"]) == ended
    assert await device.claim() == []
    expect(await device.report(claimed), 200)
    assert (await world.owner.command(running))["status"] == "succeeded"


async def test_closing_a_session_that_still_waits_cancels_it(world: World) -> None:
    await world.device("edge-1")
    session = await world.service.open_session("edge-1")
    command = await world.service.submit(session["id"])
    expect(await world.service.post(f"{SESSIONS}/{session['id']}/close"), 200)
    ended = await world.owner.session(session["id"])
    assert (ended["status"], ended["commands"][0]["status"]) == ("canceled", "canceled")
    assert ended["commands"][0]["id"] == command["id"]


async def test_of_many_that_close_a_session_at_once_one_wins(world: World, start_gateway: StartGateway) -> None:
    await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    elsewhere = (await start_gateway()).url
    callers = [world.owner, replace(world.admin, url=elsewhere)] * 3
    replies = await asyncio.gather(*(caller.post(f"{SESSIONS}/{session['id']}/close") for caller in callers))
    assert sorted(reply.status for reply in replies) == [200, *[409] * 5]
    assert {reply.code for reply in replies if reply.status == 409} == {"SESSION_CLOSED"}
    events = [entry["event"] for entry in await world.owner.transcript(session["id"])]
    assert events == ["session.opened", "session.completed"]


async def test_a_session_that_ended_in_whatever_way_takes_nothing_more(brief_world: World) -> None:
    world = brief_world
    ended: dict[str, Any] = {}
    for status in ("completed", "canceled", "rejected", "expired"):
        await world.device(status)
        kind = "diagnostic" if status in ("completed", "expired") else "remediation"
        session = await world.owner.open_session(status, kind)
        waiting = await world.owner.submit(session["id"], REMEDIATION)
        ended[status] = session["id"], waiting
        if status == "rejected":
            expect(await world.owner.decide(session["id"], approved=False, reason="No"), 200)
        elif status != "expired":
            await closed(world, session)
    await until_past(session["expiresAt"])
    for status, (session_id, waiting) in ended.items():
        replies = {
            "adding": await world.owner.post(f"{SESSIONS}/{session_id}/commands", {"type": "ping"}),
            "retrying": await world.owner.retry(waiting),
            "closing": await world.owner.post(f"{SESSIONS}/{session_id}/close"),
        }
        if status != "rejected":  # What was in it was rejected with it: that decision comes before.
            replies["approving"] = await world.owner.decide(session_id, commandId=waiting["id"])
            replies["rejecting"] = await world.owner.decide(
                session_id, approved=False, reason="No", commandId=waiting["id"]
            )
            replies["approving it"] = await world.owner.decide(session_id)
        for what, reply in replies.items():
            assert (reply.status, reply.code) == (409, "SESSION_CLOSED"), (status, what)
        await eventually(lambda id=session_id: world.owner.session(id), lambda found, s=status: found["status"] == s)  # type: ignore[misc]


async def test_when_a_session_expires_what_is_not_claimed_expires_and_what_is_claimed_may_finish(
    brief_world: World,
) -> None:
    world = brief_world
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    running = await world.owner.submit(session["id"])
    claimed = (await device.claim())[0]
    queued = await world.owner.submit(session["id"])
    proposed = await world.owner.submit(session["id"], REMEDIATION)
    await until_past(session["expiresAt"])
    assert await device.claim() == []
    ended = await eventually(lambda: world.owner.session(session["id"]), lambda found: found["status"] == "expired")
    assert TIME.fullmatch(ended["closedAt"])
    assert {command["id"]: command["status"] for command in ended["commands"]} == {
        running["id"]: "claimed",
        queued["id"]: "expired",
        proposed["id"]: "expired",
    }
    reported = expect(await device.report(claimed), 200)
    assert (reported["status"], reported["late"]) == ("succeeded", False)
    assert (await world.owner.command(running))["status"] == "succeeded"


async def test_a_session_past_its_end_makes_room_for_the_next_at_once(brief_world: World) -> None:
    world = brief_world
    await world.device("edge-1")
    first = await world.owner.open_session("edge-1")
    await until_past(first["expiresAt"])
    second = await world.owner.open_session("edge-1")
    assert second["id"] != first["id"]
    assert (await world.owner.session(first["id"]))["status"] == "expired"
    assert (await world.owner.status("edge-1"))["activeSession"] == second["id"]
