"""Commands as customers submit, watch, cancel and retry them (contract sections 3 and 4)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from tests.support.clients import API, DeviceClient, World, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.waiting import TIME, eventually

SESSIONS = f"{API}/customer/sessions"
DIAGNOSTICS = (
    "ping",
    "traceroute",
    "dns",
    "port_check",
    "http_check",
    "interfaces",
    "routes",
    "arp",
    "connectivity",
    "bandwidth",
    "system_info",
    "logs",
)
REMEDIATION = "restart_service"


async def workplace(world: World, device_id: str = "edge-1") -> tuple[DeviceClient, str]:
    """A device and the id of an active session with it."""
    device = await world.device(device_id)
    return device, (await world.owner.open_session(device_id))["id"]


async def refused(world: World, session_id: str, **fields: Any) -> tuple[int, str | None, set[str]]:
    reply = await world.owner.post(f"{SESSIONS}/{session_id}/commands", {"type": "ping", **fields})
    return reply.status, reply.code, set(reply.fields)


# Submitting


async def test_a_diagnostic_is_queued_with_the_contracts_fields_and_defaults(world: World) -> None:
    device, session_id = await workplace(world)
    parameters = {"target": "192.0.2.1", "count": 3, "note": "\u00fc", "nested": [{"deep": None}], "ratio": 0.5}
    command = await world.admin.submit(session_id, "ping", parameters=parameters, reason="Slow")
    session = await world.owner.session(session_id)
    assert command == {
        "id": command["id"],
        "deviceId": "edge-1",
        "sessionId": session_id,
        "type": "ping",
        "kind": "diagnostic",
        "parameters": parameters,
        "priority": 5,
        "status": "queued",
        "attempt": 0,
        "maxDeliveries": 5,
        "timeoutMs": 300_000,
        "digest": command["digest"],
        "proposedBy": world.admin.user_id,
        "reason": "Slow",
        "createdAt": command["createdAt"],
        "expiresAt": session["expiresAt"],
    }
    assert TIME.fullmatch(command["createdAt"])
    assert session["commands"] == [command]
    (claimed,) = await device.claim()
    assert (claimed["parameters"], claimed["digest"]) == (parameters, command["digest"])


async def test_every_type_of_the_contract_runs_at_once_and_every_other_waits_for_a_person(world: World) -> None:
    _, session_id = await workplace(world)
    for name in DIAGNOSTICS:
        command = await world.service.submit(session_id, name)
        assert (command["kind"], command["status"], command["maxDeliveries"]) == ("diagnostic", "queued", 5)
    for name in (REMEDIATION, "reboot", "ping2", "dns.flush", "a", "x" * 64, "a-b_c.d9"):
        command = await world.owner.submit(session_id, name)
        assert (command["kind"], command["status"]) == ("remediation", "pending_approval")
        assert command["maxDeliveries"] == 1


async def test_the_set_of_diagnostics_is_configurable(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_DIAGNOSTIC_TYPES="ping,vendor.probe")
    _, session_id = await workplace(world)
    kinds = {name: (await world.owner.submit(session_id, name))["kind"] for name in ("ping", "vendor.probe", "dns")}
    assert kinds == {"ping": "diagnostic", "vendor.probe": "diagnostic", "dns": "remediation"}


async def test_a_type_has_the_contracts_form(world: World) -> None:
    _, session_id = await workplace(world)
    for bad in ("", "Ping", "9ping", "_ping", "pi ng", "ping\n", "x" * 65, "p\u00efng", None, 5, ["ping"]):
        assert await refused(world, session_id, type=bad) == (400, "INVALID_REQUEST", {"type"}), bad


async def test_parameters_are_an_object_of_at_most_16_kib(world: World) -> None:
    _, session_id = await workplace(world)
    most = {"a": "x" * (16 * 1024 - len('{"a":""}'))}
    command = await world.owner.submit(session_id, parameters=most)
    assert command["parameters"] == most
    wrong: list[Any] = [{"a": most["a"] + "x"}, [], "text", 5, None]
    for bad in wrong:
        assert await refused(world, session_id, parameters=bad) == (400, "INVALID_REQUEST", {"parameters"})


async def test_numbers_keep_to_their_bounds(world: World) -> None:
    _, session_id = await workplace(world)
    bounds = {
        "priority": (1, 10),
        "timeoutMs": (1000, 3_600_000),
        "expiresInMs": (1000, 604_800_000),
        "maxDeliveries": (1, 20),
    }
    for name, (least, most) in bounds.items():
        for good in (least, most):
            await world.owner.submit(session_id, "ping", **{name: good})
        wrong: list[Any] = [least - 1, most + 1, 5.5, "5", True, [], -1]
        for bad in wrong:
            assert await refused(world, session_id, **{name: bad}) == (400, "INVALID_REQUEST", {name}), bad
    assert await refused(world, session_id, status="queued") == (400, "INVALID_REQUEST", {"status"})
    assert len((await world.owner.session(session_id))["commands"]) == 8


async def test_a_command_expires_when_it_says_and_is_not_handed_out_any_more(world: World) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id, expiresInMs=1000)
    lives = datetime.fromisoformat(command["expiresAt"]) - datetime.fromisoformat(command["createdAt"])
    assert lives.total_seconds() == 1
    found = await eventually(lambda: world.owner.command(command), lambda seen: seen["status"] != "queued")
    assert found["status"] == "expired"
    assert await device.claim() == []


async def test_a_device_holds_at_most_100_open_commands_those_that_wait_for_approval_included(
    world: World, start_gateway: StartGateway
) -> None:
    device, session_id = await workplace(world)
    elsewhere = replace(world.owner, url=(await start_gateway()).url)
    first = await world.owner.submit(session_id)
    await device.claim()
    await asyncio.gather(*(world.owner.submit(session_id, REMEDIATION) for _ in range(94)))
    replies = await asyncio.gather(
        *(who.post(f"{SESSIONS}/{session_id}/commands", {"type": "ping"}) for who in [world.owner, elsewhere] * 5)
    )
    assert sorted(reply.status for reply in replies) == [201] * 5 + [409] * 5
    assert {reply.code for reply in replies if reply.status == 409} == {"QUEUE_FULL"}
    refused = await world.owner.retry(first)
    assert (refused.status, refused.code) == (409, "COMMAND_NOT_ENDED")
    expect(await world.owner.cancel(first, force=True), 200)
    again = expect(await world.owner.retry(first), 201)["command"]
    assert (await world.owner.retry(first)).code == "QUEUE_FULL"
    expect(await world.owner.cancel(again), 200)
    await world.owner.submit(session_id)


# Watching


async def test_a_command_shows_its_way_from_the_queue_to_its_result(world: World) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id)
    (claimed,) = await device.claim()
    running = await world.viewer.command(command)
    assert (running["status"], running["attempt"]) == ("claimed", 1)
    assert TIME.fullmatch(running["claimedAt"])
    assert "completedAt" not in running
    expect(await device.report(claimed, output="3 received", error=None, result={"received": 3}), 200)
    done = await world.viewer.command(command)
    assert done["status"] == "succeeded"
    assert TIME.fullmatch(done["completedAt"])
    assert done["result"] == {
        "status": "success",
        "output": "3 received",
        "error": None,
        "result": {"received": 3},
        "executedAt": "2026-01-02T03:04:05.678Z",
        "duration": 12,
        "receivedAt": done["result"]["receivedAt"],
        "late": False,
        "truncated": False,
    }
    assert TIME.fullmatch(done["result"]["receivedAt"])


@pytest.mark.parametrize(
    ("told", "shown"),
    [("success", "succeeded"), ("failure", "failed"), ("timeout", "timed_out"), ("canceled", "canceled")],
)
async def test_the_status_of_a_result_becomes_that_of_the_command(world: World, told: str, shown: str) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id)
    (claimed,) = await device.claim()
    assert expect(await device.report(claimed, told, error="Why"), 200)["status"] == shown
    found = await world.owner.command(command)
    assert (found["status"], found["result"]["status"], found["result"]["error"]) == (shown, told, "Why")


async def test_a_devices_commands_are_listed_newest_first_over_all_its_sessions(world: World) -> None:
    device, session_id = await workplace(world)
    done = await world.owner.submit(session_id)
    await device.report((await device.claim())[0])
    expect(await world.owner.post(f"{SESSIONS}/{session_id}/close"), 200)
    second = await world.owner.open_session("edge-1")
    waiting = await world.owner.submit(second["id"], REMEDIATION)
    queued = await world.owner.submit(second["id"])
    path = f"{API}/customer/devices/edge-1/commands"

    async def found(query: str = "") -> list[str]:
        return [command["id"] for command in expect(await world.viewer.get(path + query), 200)["commands"]]

    assert await found() == [queued["id"], waiting["id"], done["id"]]
    assert await found("?status=succeeded") == [done["id"]]
    assert await found("?status=pending_approval") == [waiting["id"]]
    assert await found("?status=expired") == []
    refused = await world.owner.get(f"{path}?status=done")
    assert (refused.status, list(refused.fields)) == (400, ["status"])
    body = expect(await world.viewer.get(path), 200)
    assert body == {
        "commands": [await world.owner.command(command) for command in (queued, waiting, done)],
        "nextCursor": None,
    }


# Canceling


async def test_a_command_that_nobody_has_claimed_is_canceled_at_once(world: World) -> None:
    device, session_id = await workplace(world)
    for name in ("ping", REMEDIATION):
        command = await world.owner.submit(session_id, name)
        canceled = expect(await world.admin.cancel(command, reason="Not needed"), 200)["command"]
        assert canceled["status"] == "canceled"
        assert TIME.fullmatch(canceled["completedAt"])
        assert canceled == await world.owner.command(command)
    assert await device.claim() == []


async def test_a_claimed_command_is_asked_to_stop_and_what_its_device_answers_counts(world: World) -> None:
    device, session_id = await workplace(world)
    for told, shown in (("success", "succeeded"), ("failure", "failed"), ("canceled", "canceled")):
        command = await world.owner.submit(session_id)
        (claimed,) = await device.claim()
        assert "cancelRequested" not in expect(await device.extend(claimed), 200)
        for _ in range(2):
            asked = expect(await world.owner.cancel(command, reason="Stop"), 200)["command"]
            assert asked["status"] == "cancel_requested"
        assert expect(await device.extend(claimed), 200)["cancelRequested"] is True
        assert expect(await device.report(claimed, told), 200)["status"] == shown
        assert (await world.owner.command(command))["status"] == shown


async def test_without_an_answer_it_ends_as_canceled_with_its_lease_and_is_never_redelivered(world: World) -> None:
    device, session_id = await workplace(world)
    command = await world.owner.submit(session_id)
    await device.claim(visibilityTimeout=1000)
    expect(await world.owner.cancel(command), 200)
    assert await device.claim(waitMs=1500) == []
    found = await eventually(lambda: world.owner.command(command), lambda seen: seen["status"] != "cancel_requested")
    assert (found["status"], found["attempt"]) == ("canceled", 1)
    assert await device.claim() == []


async def test_force_cancels_a_claimed_command_at_once_and_its_result_is_409(world: World) -> None:
    device, session_id = await workplace(world)
    for asked_before in (False, True):
        command = await world.owner.submit(session_id)
        (claimed,) = await device.claim()
        if asked_before:
            expect(await world.owner.cancel(command), 200)
        canceled = expect(await world.owner.cancel(command, force=True, reason="Now"), 200)["command"]
        assert canceled["status"] == "canceled"
        for reply in (await device.report(claimed), await device.extend(claimed), await device.release(claimed)):
            assert (reply.status, reply.code) == (409, "COMMAND_CANCELED")
        assert "result" not in await world.owner.command(command)
        assert await device.claim() == []


async def test_a_command_that_has_ended_cannot_be_canceled(world: World) -> None:
    device, session_id = await workplace(world)
    done = await world.owner.submit(session_id)
    await device.report((await device.claim())[0])
    canceled = await world.owner.submit(session_id)
    expect(await world.owner.cancel(canceled), 200)
    rejected = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.owner.decide(session_id, approved=False, reason="No", commandId=rejected["id"]), 200)
    for command in (done, canceled, rejected):
        before = await world.owner.command(command)
        for fields in ({}, {"force": True}):
            reply = await world.owner.cancel(command, **fields)
            assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")
        assert await world.owner.command(command) == before


async def test_a_cancel_that_makes_no_sense_is_400_and_cancels_nothing(world: World) -> None:
    _, session_id = await workplace(world)
    command = await world.owner.submit(session_id)
    for wrong in ({"force": "yes"}, {"force": 1}, {"force": None}, {"reason": 5}, {"now": True}):
        reply = await world.owner.cancel(command, **wrong)
        assert (reply.status, reply.code, set(reply.fields)) == (400, "INVALID_REQUEST", set(wrong))
    assert (await world.owner.command(command))["status"] == "queued"


async def test_a_cancel_and_a_result_at_once_agree_on_one_end(world: World, start_gateway: StartGateway) -> None:
    device, session_id = await workplace(world)
    elsewhere = replace(world.owner, url=(await start_gateway()).url)
    for _ in range(5):
        command = await world.owner.submit(session_id)
        (claimed,) = await device.claim()
        canceled, reported = await asyncio.gather(elsewhere.cancel(command, force=True), device.report(claimed))
        status = (await world.owner.command(command))["status"]
        answers = (canceled.status, canceled.code, reported.status, reported.code, status)
        assert answers in (
            (200, None, 409, "COMMAND_CANCELED", "canceled"),
            (409, "COMMAND_ALREADY_COMPLETED", 200, None, "succeeded"),
        )


async def test_claims_and_the_end_of_a_session_do_not_lock_each_other_out(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_DEVICE="0")
    device = await world.device("edge-1")
    for _ in range(10):
        session = await world.owner.open_session("edge-1")
        await asyncio.gather(*(world.owner.submit(session["id"], priority=1 + n % 10) for n in range(16)))
        closing = world.owner.post(f"{SESSIONS}/{session['id']}/close")
        *claims, reply = await asyncio.gather(device.claim(limit=8), device.claim(limit=8), closing)
        expect(reply, 200)
        claimed = [command for claim in claims for command in claim]
        commands = (await world.owner.session(session["id"]))["commands"]
        states = {command["id"]: command["status"] for command in commands}
        assert set(states.values()) <= {"canceled", "cancel_requested"}
        assert {id for id, status in states.items() if status != "canceled"} == {one["id"] for one in claimed}
        for command in claimed:
            expect(await device.report(command), 200)


# Retrying


async def test_a_retry_is_a_new_command_like_the_ended_one(world: World) -> None:
    device, session_id = await workplace(world)
    fields = {"priority": 2, "timeoutMs": 5000, "maxDeliveries": 3, "parameters": {"target": "a"}, "reason": "Why"}
    source = await world.owner.submit(session_id, "dns", **fields)
    await device.report((await device.claim())[0], "failure")
    again = expect(await world.admin.retry(source), 201)["command"]
    assert again["id"] != source["id"]
    assert (again["status"], again["attempt"], again["proposedBy"]) == ("queued", 0, world.admin.user_id)
    for name in ("type", "kind", "digest", "expiresAt", *fields):
        assert again[name] == source[name], name
    assert "result" not in again
    (claimed,) = await device.claim()
    assert claimed["id"] == again["id"]
    assert (await world.owner.command(source))["status"] == "failed"


async def test_a_retry_of_remediation_needs_an_approval_of_its_own(world: World) -> None:
    device, session_id = await workplace(world)
    source = await world.owner.submit(session_id, REMEDIATION)
    expect(await world.admin.decide(session_id, commandId=source["id"]), 200)
    await device.report((await device.claim())[0])
    again = expect(await world.owner.retry(source), 201)["command"]
    assert again["status"] == "pending_approval"
    assert "approval" not in again
    assert await device.claim() == []
    expect(await world.admin.decide(session_id, commandId=again["id"]), 200)
    assert [command["id"] for command in await device.claim()] == [again["id"]]


async def test_a_command_that_has_not_ended_cannot_be_retried(world: World) -> None:
    device, session_id = await workplace(world)
    await world.owner.submit(session_id)
    claimed, queued = (await device.claim())[0], await world.owner.submit(session_id)
    waiting = await world.owner.submit(session_id, REMEDIATION)
    for command in ({"id": claimed["id"], "sessionId": session_id}, queued, waiting):
        reply = await world.owner.retry(command)
        assert (reply.status, reply.code) == (409, "COMMAND_NOT_ENDED")
    assert len((await world.owner.session(session_id))["commands"]) == 3
