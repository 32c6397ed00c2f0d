"""Machines propose, people approve, and what a person approved is what runs (contract sections 2 and 4)."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from aizen_gateway.domain.values import Role
from aizen_gateway.services.operators import Operators
from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, CustomerClient, DeviceClient, Reply, World, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.waiting import TIME, eventually, until_past

SESSIONS = f"{API}/customer/sessions"
REMEDIATION = "restart_service"
EITHER: tuple[dict[str, Any], ...] = ({"approved": True}, {"approved": False, "reason": "No"})


async def workplace(world: World, type: str = "diagnostic") -> tuple[DeviceClient, str]:
    """A device and the id of a session with it."""
    device = await world.device("edge-1")
    return device, (await world.owner.open_session("edge-1", type))["id"]


async def waiting(world: World) -> list[Any]:
    """What now waits for a person."""
    return list(expect(await world.viewer.get(f"{API}/customer/approvals"), 200)["approvals"])


def outcome(reply: Reply) -> tuple[int, str | None]:
    return reply.status, reply.code


# Deciding a command


async def test_an_approved_command_is_queued_and_carries_its_approval(world: World) -> None:
    device, session_id = await workplace(world)
    command = await world.service.submit(session_id, REMEDIATION, parameters={"unit": "dns"})
    assert (command["status"], command["proposedBy"]) == ("pending_approval", "service")
    assert await device.claim() == []
    reply = await world.admin.decide(session_id, commandId=command["id"], reason="Looks right")
    assert expect(reply, 200) == {"success": True, "command": {"id": command["id"], "status": "approved"}}
    approved = await world.owner.command(command)
    assert approved["status"] == "queued"
    assert approved["approval"] == {
        "decision": "approved",
        "by": world.admin.user_id,
        "at": approved["approval"]["at"],
        "reason": "Looks right",
        "digest": command["digest"],
        "expiresAt": approved["approval"]["expiresAt"],
    }
    lasts = datetime.fromisoformat(approved["approval"]["expiresAt"]) - datetime.fromisoformat(
        approved["approval"]["at"]
    )
    assert lasts.total_seconds() == 3600
    (claimed,) = await device.claim()
    assert (claimed["id"], claimed["digest"], claimed["parameters"]) == (
        command["id"],
        command["digest"],
        {"unit": "dns"},
    )


async def test_a_long_poll_hears_of_an_approval_at_once(world: World) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    poll = asyncio.create_task(device.claim(waitMs=30_000))
    expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
    assert [claimed["id"] for claimed in await poll] == [command["id"]]


async def test_a_rejected_command_has_ended_and_is_never_handed_out(world: World) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    reply = await world.admin.decide(session_id, approved=False, reason="Too risky", commandId=command["id"])
    assert expect(reply, 200) == {"success": True, "command": {"id": command["id"], "status": "rejected"}}
    rejected = await world.owner.command(command)
    assert rejected["status"] == "rejected"
    assert TIME.fullmatch(rejected["completedAt"])
    assert rejected["approval"] == {
        "decision": "rejected",
        "by": world.admin.user_id,
        "at": rejected["approval"]["at"],
        "reason": "Too risky",
        "digest": command["digest"],
    }
    assert await device.claim() == []


async def test_a_rejection_needs_a_reason(world: World) -> None:
    _, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    for named in ({}, {"commandId": command["id"]}):
        for reason in ({}, {"reason": None}, {"reason": ""}, {"reason": " \t"}):
            reply = await world.admin.decide(session_id, approved=False, **named, **reason)
            assert (*outcome(reply), list(reply.fields)) == (400, "INVALID_REQUEST", ["reason"])
    assert [entry["kind"] for entry in await waiting(world)] == ["command", "session"]


async def test_a_decision_that_makes_no_sense_is_400_and_decides_nothing(world: World) -> None:
    _, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    named = {"approved": True, "commandId": command["id"]}
    for wrong, field in (
        ({"commandId": command["id"]}, "approved"),
        ({**named, "approved": "yes"}, "approved"),
        ({**named, "approved": 1}, "approved"),
        ({**named, "approved": None}, "approved"),
        ({**named, "commandId": "ping"}, "commandId"),
        ({**named, "commandId": None}, "commandId"),
        ({**named, "reason": 5}, "reason"),
        ({**named, "digest": None}, "digest"),
        ({**named, "digest": 5}, "digest"),
        ({"approved": True, "digest": command["digest"]}, "digest"),
        ({**named, "force": True}, "force"),
    ):
        reply = await world.admin.post(f"{SESSIONS}/{session_id}/approve", wrong)
        assert (*outcome(reply), list(reply.fields)) == (400, "INVALID_REQUEST", [field]), wrong
    assert (await world.owner.command(command))["status"] == "pending_approval"


# The digest


async def test_the_digest_is_that_of_the_canonical_json_of_type_and_parameters(world: World) -> None:
    _, session_id = await workplace(world)
    # The example of RFC 8785, section 3.2.
    parameters = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    canonical = (
        '{"parameters":{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"},"type":"restart_service"}'
    )
    command = await world.owner.submit(session_id, REMEDIATION, parameters=parameters)
    assert command["digest"] == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


async def test_names_are_sorted_by_utf_16_and_equal_numbers_are_equal(world: World) -> None:
    _, session_id = await workplace(world)
    # The sorting example of RFC 8785, section 3.2.3.
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    order = ["\\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    canonical = '{"parameters":{' + ",".join(f'"{name}":0' for name in order) + '},"type":"ping"}'
    wanted = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    for zero in (0, 0.0, -0.0):
        parameters = dict.fromkeys(names, zero)
        assert (await world.owner.submit(session_id, "ping", parameters=parameters))["digest"] == wanted
    largest = await world.owner.submit(session_id, "ping", parameters={"n": 2**53})
    written = '{"parameters":{"n":9007199254740992},"type":"ping"}'
    assert largest["digest"] == "sha256:" + hashlib.sha256(written.encode()).hexdigest()


async def test_a_decision_with_another_digest_is_409_and_one_with_the_commands_counts(world: World) -> None:
    _, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    other = await world.owner.submit(session_id, REMEDIATION, parameters={"unit": "dns"})
    for wrong in (other["digest"], "", command["digest"].upper(), command["digest"].removeprefix("sha256:")):
        for decision in EITHER:
            reply = await world.admin.decide(session_id, commandId=command["id"], digest=wrong, **decision)
            assert outcome(reply) == (409, "DIGEST_MISMATCH"), wrong
    assert (await world.owner.command(command))["status"] == "pending_approval"
    expect(await world.admin.decide(session_id, commandId=command["id"], digest=command["digest"]), 200)


# Deciding a session


async def test_with_its_approval_a_sessions_diagnostics_are_queued_and_each_remediation_still_waits(
    world: World,
) -> None:
    device, session_id = await workplace(world, "remediation")
    for name in ("ping", REMEDIATION, "dns"):
        assert (await world.service.submit(session_id, name))["status"] == "pending_approval"
    assert await device.claim(limit=10) == []
    reply = await world.admin.decide(session_id, reason="Go on")
    assert expect(reply, 200) == {"success": True, "session": {"id": session_id, "status": "active"}}
    session = await world.owner.session(session_id)
    assert session["status"] == "active"
    assert session["approval"] == {
        "decision": "approved",
        "by": world.admin.user_id,
        "at": session["approval"]["at"],
        "reason": "Go on",
        "digest": None,
    }
    assert {command["type"]: command["status"] for command in session["commands"]} == {
        "ping": "queued",
        REMEDIATION: "pending_approval",
        "dns": "queued",
    }
    assert [command["type"] for command in await device.claim(limit=10)] == ["ping", "dns"]
    assert [entry["kind"] for entry in await waiting(world)] == ["command"]


async def test_what_a_sessions_approval_queues_keeps_the_order_of_its_submission(world: World) -> None:
    device, session_id = await workplace(world, "remediation")
    submitted = [(await world.owner.submit(session_id, "ping"))["id"] for _ in range(8)]
    expect(await world.admin.decide(session_id), 200)
    assert [command["id"] for command in (await world.owner.session(session_id))["commands"]] == submitted
    assert [command["id"] for command in await device.claim(limit=8)] == submitted


async def test_a_rejected_session_leaves_what_was_said_of_a_command_and_cancels_it(world: World) -> None:
    device, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
    approval = (await world.owner.command(command))["approval"]
    expect(await world.admin.decide(session_id, approved=False, reason="Not today"), 200)
    ended = await world.owner.command(command)
    assert (ended["status"], ended["approval"]) == ("canceled", approval)
    assert TIME.fullmatch(ended["completedAt"])
    assert await device.claim() == []


async def test_a_rejected_session_has_ended_with_all_that_was_in_it(world: World) -> None:
    device, session_id = await workplace(world, "remediation")
    for name in ("ping", REMEDIATION):
        await world.owner.submit(session_id, name)
    reply = await world.admin.decide(session_id, approved=False, reason="Not today")
    assert expect(reply, 200) == {"success": True, "session": {"id": session_id, "status": "rejected"}}
    session = await world.owner.session(session_id)
    assert (session["status"], session["approval"]["decision"]) == ("rejected", "rejected")
    assert TIME.fullmatch(session["closedAt"])
    for command in session["commands"]:
        assert (command["status"], command["approval"]["reason"]) == ("rejected", "Not today")
        assert command["approval"]["digest"] == command["digest"]
    assert await device.claim() == []
    assert await waiting(world) == []
    await world.owner.open_session("edge-1")


async def test_a_command_approved_while_its_session_waits_is_queued_with_the_sessions_approval(world: World) -> None:
    device, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
    found = await world.owner.command(command)
    assert (found["status"], found["approval"]["decision"]) == ("pending_approval", "approved")
    assert await device.claim() == []
    assert [entry["kind"] for entry in await waiting(world)] == ["session"]
    expect(await world.admin.decide(session_id), 200)
    assert [claimed["id"] for claimed in await device.claim()] == [command["id"]]


# Who decides


async def test_a_service_never_decides_anything(world: World) -> None:
    _, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    done = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.owner.decide(session_id, commandId=done["id"]), 200)
    before = await world.owner.transcript(session_id)
    for decision in EITHER:
        for named in ({}, {"commandId": command["id"]}, {"commandId": done["id"]}):
            reply = await world.service.post(f"{SESSIONS}/{session_id}/approve", {**decision, **named})
            assert outcome(reply) == (403, "FORBIDDEN")
    assert await world.owner.transcript(session_id) == before


async def test_a_viewer_decides_nothing(world: World) -> None:
    _, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    for decision in EITHER:
        reply = await world.viewer.post(f"{SESSIONS}/{session_id}/approve", {**decision, "commandId": command["id"]})
        assert outcome(reply) == (403, "FORBIDDEN")
    assert (await world.owner.command(command))["status"] == "pending_approval"


async def test_whoever_proposed_may_approve_where_no_second_person_is_required(world: World) -> None:
    _, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.owner.decide(session_id), 200)
    expect(await world.owner.decide(session_id, commandId=command["id"]), 200)


async def test_with_a_second_approver_required_whoever_proposed_may_reject_and_not_approve(world: World) -> None:
    careful = await world.another(second_approver=True)
    device = await careful.device("careful-1")
    session_id = (await careful.owner.open_session("careful-1", "remediation"))["id"]
    command = await careful.owner.submit(session_id, REMEDIATION)
    refused = await careful.owner.decide(session_id, commandId=command["id"], digest=command["digest"])
    assert outcome(refused) == (403, "SELF_APPROVAL")
    assert outcome(await careful.owner.decide(session_id)) == (403, "SELF_APPROVAL")
    expect(await careful.admin.decide(session_id), 200)
    expect(await careful.admin.decide(session_id, commandId=command["id"]), 200)
    assert [claimed["id"] for claimed in await device.claim()] == [command["id"]]
    own = await careful.owner.submit(session_id, REMEDIATION)
    expect(await careful.owner.decide(session_id, approved=False, reason="My mistake", commandId=own["id"]), 200)


async def test_a_retry_is_proposed_by_whoever_retries(world: World) -> None:
    careful = await world.another(second_approver=True)
    await careful.device("careful-1")
    session_id = (await careful.owner.open_session("careful-1"))["id"]
    command = await careful.owner.submit(session_id, REMEDIATION)
    expect(await careful.owner.cancel(command), 200)
    again = expect(await careful.admin.retry(command), 201)["command"]
    assert outcome(await careful.admin.decide(session_id, commandId=again["id"])) == (403, "SELF_APPROVAL")
    expect(await careful.owner.decide(session_id, commandId=again["id"]), 200)


async def test_what_a_service_proposed_any_person_may_approve(world: World) -> None:
    careful = await world.another(second_approver=True)
    await careful.device("careful-1")
    session_id = (await careful.service.open_session("careful-1"))["id"]
    command = await careful.service.submit(session_id, REMEDIATION)
    expect(await careful.owner.decide(session_id), 200)
    expect(await careful.owner.decide(session_id, commandId=command["id"]), 200)


@pytest.mark.parametrize("role", [None, Role.VIEWER])
async def test_the_approvers_role_counts_at_the_moment_of_the_decision(
    world: World, database: Database, role: Role | None
) -> None:
    _, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    customer, user = UUID(world.customer_id), UUID(world.admin.user_id)
    async with database.connection() as connection, connection.transaction():
        await connection.execute("select from aizen.sessions where id = $1 for update", UUID(session_id))
        deciding = asyncio.create_task(world.admin.decide(session_id, commandId=command["id"]))
        await eventually(lambda: waits_for_a_lock(database), bool)
        # The decision has been admitted; now the approver loses its role.
        if role is None:
            await Operators(world.database).remove_member(customer, user)
        else:
            await Operators(world.database).add_member(customer, user, role)
    assert outcome(await deciding) == (403, "NO_CUSTOMER" if role is None else "FORBIDDEN")
    assert (await world.owner.command(command))["status"] == "pending_approval"


async def waits_for_a_lock(database: Database) -> bool:
    row = await database.fetchrow(
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
    )
    return bool(row["exists"])


# Decisions are final


async def test_a_decided_command_is_already_decided_whatever_became_of_it(world: World) -> None:
    device, session_id = await workplace(world)
    decided = []
    for wanted in ("queued", "claimed", "succeeded", "canceled", "rejected"):
        command = await world.owner.submit(session_id, REMEDIATION)
        decision: dict[str, Any] = {"approved": False, "reason": "No"} if wanted == "rejected" else {}
        if wanted != "queued":
            expect(await world.admin.decide(session_id, commandId=command["id"], **decision), 200)
        if wanted in ("claimed", "succeeded"):
            (claimed,) = await device.claim()
            if wanted == "succeeded":
                expect(await device.report(claimed), 200)
        if wanted == "canceled":
            expect(await world.owner.cancel(command), 200)
        if wanted == "queued":
            first = command
            continue
        assert (await world.owner.command(command))["status"] == wanted
        decided.append(command)
    expect(await world.admin.decide(session_id, commandId=first["id"]), 200)
    decided.append(first)
    diagnostic = await world.owner.submit(session_id)

    async def decide_again() -> set[tuple[int, str | None]]:
        answers = set()
        for command in decided:
            for decision in (*EITHER, {"approved": True, "digest": "sha256:other"}):
                reply = await world.owner.decide(session_id, commandId=command["id"], **decision)
                answers.add(outcome(reply))
        return answers

    assert await decide_again() == {(409, "ALREADY_DECIDED")}
    assert outcome(await world.owner.decide(session_id, commandId=diagnostic["id"])) == (409, "ALREADY_DECIDED")
    expect(await world.owner.post(f"{SESSIONS}/{session_id}/close"), 200)
    assert await decide_again() == {(409, "ALREADY_DECIDED")}


async def test_a_decided_session_is_already_decided_after_its_end_too(world: World) -> None:
    for number, decision in enumerate(EITHER):
        await world.device(f"edge-{number}")
        session_id = (await world.owner.open_session(f"edge-{number}", "remediation"))["id"]
        expect(await world.admin.decide(session_id, **decision), 200)
        for _ in range(2):
            for another in EITHER:
                assert outcome(await world.owner.decide(session_id, **another)) == (409, "ALREADY_DECIDED")
            await world.owner.post(f"{SESSIONS}/{session_id}/close")


async def test_a_session_that_needed_no_approval_cannot_be_decided(world: World) -> None:
    _, session_id = await workplace(world)
    for decision in EITHER:
        assert outcome(await world.admin.decide(session_id, **decision)) == (409, "ALREADY_DECIDED")
    assert (await world.owner.session(session_id))["status"] == "active"


async def test_a_command_that_was_canceled_undecided_takes_no_decision(world: World) -> None:
    _, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.owner.cancel(command), 200)
    reply = await world.admin.decide(session_id, commandId=command["id"])
    assert outcome(reply) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_exactly_one_of_many_decisions_at_once_on_two_instances_wins(
    world: World, start_gateway: StartGateway
) -> None:
    device, session_id = await workplace(world)
    elsewhere = (await start_gateway()).url
    people: list[CustomerClient] = [world.owner, world.admin]
    people += [replace(person, url=elsewhere) for person in people]
    for _ in range(3):
        command = await world.owner.submit(session_id, REMEDIATION)
        named = {"commandId": command["id"], "digest": command["digest"]}
        replies = await asyncio.gather(
            *(person.decide(session_id, **{**decision, **named}) for person in people for decision in EITHER)
        )
        (won,) = [reply.body["command"]["status"] for reply in replies if reply.status == 200]
        assert {outcome(reply) for reply in replies if reply.status != 200} == {(409, "ALREADY_DECIDED")}
        found = await world.owner.command(command)
        assert found["approval"]["decision"] == won
        claimed = await device.claim()
        assert [one["id"] for one in claimed] == ([command["id"]] if won == "approved" else [])
        entries = await world.owner.transcript(session_id)
        about_it = [entry["event"] for entry in entries if entry.get("commandId") == command["id"]]
        assert about_it == ["command.submitted", f"command.{won}", *["command.claimed"] * len(claimed)]


async def test_exactly_one_of_many_decisions_about_a_session_wins(world: World, start_gateway: StartGateway) -> None:
    _, session_id = await workplace(world, "remediation")
    await world.owner.submit(session_id, "ping")
    elsewhere = replace(world.admin, url=(await start_gateway()).url)
    replies = await asyncio.gather(
        *(person.decide(session_id, **decision) for person in (world.owner, elsewhere) for decision in EITHER)
    )
    (won,) = [reply.body["session"]["status"] for reply in replies if reply.status == 200]
    assert {outcome(reply) for reply in replies if reply.status != 200} == {(409, "ALREADY_DECIDED")}
    session = await world.owner.session(session_id)
    assert (session["status"], session["commands"][0]["status"]) in (("active", "queued"), ("rejected", "rejected"))
    assert session["status"] == won


# Two clocks


async def test_an_approved_command_must_be_claimed_within_the_approvals_time(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_APPROVAL_TTL="1")
    device, session_id = await workplace(world)
    left, taken = [await world.owner.submit(session_id, REMEDIATION) for _ in range(2)]
    expect(await world.admin.decide(session_id, commandId=taken["id"]), 200)
    (claimed,) = await device.claim()
    expect(await world.admin.decide(session_id, commandId=left["id"]), 200)
    await until_past((await world.owner.command(left))["approval"]["expiresAt"])
    # Whether or not anything has swept yet.
    assert await device.claim() == []
    found = await eventually(lambda: world.owner.command(left), lambda seen: seen["status"] != "queued")
    assert (found["status"], found["attempt"]) == ("expired", 0)
    assert expect(await device.report(claimed), 200)["status"] == "succeeded"


async def test_the_truth_refuses_a_claim_after_the_approvals_time_even_if_the_index_offers_it(
    world: World, database: Database
) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
    # The approval's end moves into the past where only the truth knows of it, and nothing sweeps it up.
    await database.execute(
        "update aizen.commands set claim_by = now() - interval '1 second' where id = $1", UUID(command["id"])
    )
    assert await device.claim() == []
    assert (await world.owner.command(command))["attempt"] == 0


async def test_an_undecided_command_lapses_with_its_session(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_SESSION_TTL="1")
    device, session_id = await workplace(world)
    undecided = await world.owner.submit(session_id, REMEDIATION)
    approved = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.admin.decide(session_id, commandId=approved["id"]), 200)
    await until_past(undecided["expiresAt"])
    reply = await world.admin.decide(session_id, commandId=undecided["id"])
    assert outcome(reply) == (409, "SESSION_CLOSED")
    assert await waiting(world) == []
    assert await device.claim() == []
    for command in (undecided, approved):
        found = await eventually(
            lambda command=command: world.owner.command(command),  # type: ignore[misc]
            lambda seen: seen["status"] not in ("pending_approval", "queued"),
        )
        assert found["status"] == "expired"


async def test_the_clock_of_an_approval_runs_while_its_session_still_waits(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_APPROVAL_TTL="1")
    device, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
    await until_past((await world.owner.command(command))["approval"]["expiresAt"])
    expect(await world.admin.decide(session_id), 200)
    assert await device.claim() == []
    await eventually(lambda: world.owner.command(command), lambda seen: seen["status"] == "expired")


# What waits


async def test_the_list_of_approvals_tells_what_waits_who_asked_and_until_when(world: World) -> None:
    _, first = await workplace(world)
    command = await world.admin.submit(first, REMEDIATION)
    await world.owner.submit(first, "ping")
    await world.device("edge-2")
    session = await world.service.open_session("edge-2")
    # Waits for nothing but its session's approval.
    await world.service.submit(session["id"], "ping")
    shown = await waiting(world)
    active = await world.owner.session(first)
    del active["commands"], session["commands"]
    assert shown == [
        {
            "kind": "session",
            "session": session,
            "requestedBy": "service",
            "requestedAt": session["createdAt"],
            "expiresAt": session["expiresAt"],
        },
        {
            "kind": "command",
            "session": active,
            "command": command,
            "requestedBy": world.admin.user_id,
            "requestedAt": command["createdAt"],
            "expiresAt": active["expiresAt"],
        },
    ]


async def test_what_is_decided_canceled_or_closed_waits_no_more(world: World) -> None:
    _, session_id = await workplace(world)
    commands = [await world.owner.submit(session_id, REMEDIATION) for _ in range(4)]
    assert len(await waiting(world)) == 4
    expect(await world.admin.decide(session_id, commandId=commands[0]["id"]), 200)
    expect(await world.admin.decide(session_id, approved=False, reason="No", commandId=commands[1]["id"]), 200)
    expect(await world.owner.cancel(commands[2]), 200)
    assert [entry["command"]["id"] for entry in await waiting(world)] == [commands[3]["id"]]
    expect(await world.owner.post(f"{SESSIONS}/{session_id}/close"), 200)
    assert await waiting(world) == []


# In one transaction


async def test_a_decision_that_cannot_be_put_into_the_audit_log_is_not_made(world: World, database: Database) -> None:
    device, session_id = await workplace(world, "remediation")
    command = await world.owner.submit(session_id, REMEDIATION)
    await database.execute(
        "alter table aizen.audit add constraint full_up check (action not like '%approved') not valid"
    )
    for named in ({}, {"commandId": command["id"]}):
        with capture_logs():
            reply = await world.admin.decide(session_id, **named)
        assert outcome(reply) == (500, "INTERNAL_ERROR")
        assert "aizen" not in str(reply.body)
    session = await world.owner.session(session_id)
    assert (session["status"], session["commands"][0]["status"]) == ("pending_approval", "pending_approval")
    assert [entry["event"] for entry in await world.owner.transcript(session_id)] == [
        "session.opened",
        "command.submitted",
    ]
    await database.execute("alter table aizen.audit drop constraint full_up")
    expect(await world.admin.decide(session_id), 200)
    expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
    assert [claimed["id"] for claimed in await device.claim()] == [command["id"]]


async def test_every_decision_is_in_the_audit_log_with_its_digest_and_reason(world: World) -> None:
    _, session_id = await workplace(world, "remediation")
    first, second = [await world.owner.submit(session_id, REMEDIATION) for _ in range(2)]
    expect(await world.admin.decide(session_id, reason="One"), 200)
    expect(await world.admin.decide(session_id, commandId=first["id"], reason="Two"), 200)
    expect(await world.owner.decide(session_id, approved=False, commandId=second["id"], reason="Three"), 200)
    records = expect(await world.owner.get(f"{API}/customer/audit?limit=3"), 200)["records"]
    told = [(record["action"], record["resourceId"], record["actor"], record["details"]) for record in records]
    assert told == [
        ("command.rejected", second["id"], world.owner.user_id, {"reason": "Three", "digest": second["digest"]}),
        ("command.approved", first["id"], world.admin.user_id, {"reason": "Two", "digest": first["digest"]}),
        ("session.approved", session_id, world.admin.user_id, {"reason": "One"}),
    ]
