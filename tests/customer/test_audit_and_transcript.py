"""Who did what: the audit log and the transcripts of sessions (contract sections 1 and 4)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from structlog.testing import capture_logs

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, Client, World, expect
from tests.support.gateway import StartWorld
from tests.support.waiting import TIME, eventually

CUSTOMER = f"{API}/customer"
SESSIONS = f"{CUSTOMER}/sessions"
REMEDIATION = "restart_service"


async def records(world: World, query: str = "") -> list[Any]:
    """The audit log from the oldest to the newest."""
    body = expect(await world.owner.get(f"{CUSTOMER}/audit?limit=200{query}"), 200)
    assert set(body) == {"records", "nextCursor"}
    return list(reversed(body["records"]))


def told(entries: list[Any]) -> list[tuple[str, str]]:
    return [(entry["event"], entry["actor"]) for entry in entries]


# The audit log


async def test_a_record_tells_who_did_what_from_where_in_which_request(world: World) -> None:
    headers = {"X-Request-ID": "order-66", "User-Agent": "portal/2.1 (test)"}
    reply = await world.admin.call("POST", f"{CUSTOMER}/devices/provision", {"deviceId": "edge-1"}, headers=headers)
    expect(reply, 201)
    (record,) = await records(world)
    assert record == {
        "id": record["id"],
        "at": record["at"],
        "action": "device.provisioned",
        "resource": "device",
        "resourceId": "edge-1",
        "actor": world.admin.user_id,
        "actorType": "user",
        "ip": "127.0.0.1",
        "userAgent": "portal/2.1 (test)",
        "requestId": "order-66",
        "details": {},
    }
    assert isinstance(record["id"], str)
    assert TIME.fullmatch(record["at"])


async def test_a_request_without_an_id_is_recorded_under_the_one_it_was_given(world: World) -> None:
    reply = await world.owner.post(f"{CUSTOMER}/devices/provision", {"deviceId": "edge-1"})
    (record,) = await records(world)
    assert record["requestId"] == reply.headers["X-Request-ID"]
    assert UUID(record["requestId"]).version == 4


async def test_every_change_of_a_device_is_recorded(world: World) -> None:
    await world.device("edge-1")
    path = f"{CUSTOMER}/devices/edge-1"
    expect(await world.admin.call("PATCH", path, {"name": "New", "location": None}), 200)
    for step in ("suspend", "resume", "rotate-secret"):
        expect(await world.service.post(f"{path}/{step}"), 200)
    assert (await world.owner.call("DELETE", path)).status == 204
    found = await records(world)
    assert {record["resource"] for record in found} == {"device"}
    assert {record["resourceId"] for record in found} == {"edge-1"}
    assert [(record["action"], record["actorType"], record["actor"]) for record in found] == [
        ("device.provisioned", "user", world.owner.user_id),
        ("device.registered", "device", "edge-1"),
        ("device.updated", "user", world.admin.user_id),
        ("device.suspended", "service", "service"),
        ("device.resumed", "service", "service"),
        ("device.secret_rotated", "service", "service"),
        ("device.deleted", "user", world.owner.user_id),
    ]
    assert found[2]["details"] == {"name": "New", "location": None}


async def test_what_is_refused_or_only_read_leaves_no_record(world: World) -> None:
    await world.owner.provision("edge-1")
    await world.owner.post(f"{CUSTOMER}/devices/provision", {"deviceId": "a b"})
    await world.owner.post(SESSIONS, {"deviceId": "nowhere-1", "type": "diagnostic"})
    await world.viewer.post(f"{CUSTOMER}/devices/edge-1/suspend")
    await world.owner.status("edge-1")
    assert [record["action"] for record in await records(world)] == ["device.provisioned"]


async def test_no_secret_code_or_token_is_in_the_log(world: World) -> None:
    device = await world.device("edge-1")
    rotated = expect(await world.owner.post(f"{CUSTOMER}/devices/edge-1/rotate-secret"), 200)
    text = str(await records(world))
    for secret in (
        device.secret,
        device.token,
        rotated["device"]["activationCode"],
        world.owner.headers["Authorization"],
    ):
        assert secret not in text


async def test_the_log_is_filtered_by_action_and_resource(world: World) -> None:
    await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    command = await world.owner.submit(session["id"])
    await world.owner.submit(session["id"], "dns")

    async def found(query: str) -> list[str]:
        return [record["resourceId"] for record in await records(world, query)]

    assert await found("&resource=session") == [session["id"]]
    assert await found("&action=command.submitted") == [
        one["id"] for one in (await world.owner.session(session["id"]))["commands"]
    ]
    assert (await found("&action=command.submitted&resource=command"))[0] == command["id"]
    assert await found("&action=command.submitted&resource=device") == []
    assert await found("&action=command") == []
    assert len(await found("&action=&resource=")) == 5


async def test_owners_admins_and_services_read_the_log_and_viewers_do_not(world: World) -> None:
    for who in (world.owner, world.admin, world.service):
        expect(await who.get(f"{CUSTOMER}/audit"), 200)
    refused = await world.viewer.get(f"{CUSTOMER}/audit")
    assert (refused.status, refused.code) == (403, "FORBIDDEN")


async def test_a_user_agent_that_nothing_can_hold_does_not_fail_the_call(world: World) -> None:
    # aiohttp's client sends headers in UTF-8; a lone byte cannot be sent by it, control characters neither.
    agent = "portal \u00e9\u2028 " + "x" * 3000
    reply = await world.owner.call(
        "POST", f"{CUSTOMER}/devices/provision", {"deviceId": "edge-1"}, headers={"User-Agent": agent}
    )
    expect(reply, 201)
    (record,) = await records(world)
    assert record["userAgent"].startswith("portal \u00e9\ufffd xxx")
    assert len(record["userAgent"]) <= 512


async def test_a_change_that_cannot_be_recorded_is_not_made(world: World, database: Database) -> None:
    device = await world.device("edge-1")
    await world.owner.provision("edge-2")
    session = (await world.owner.open_session("edge-1"))["id"]
    done = (await world.owner.submit(session))["id"]
    await device.report((await device.claim())[0])
    queued = (await world.owner.submit(session))["id"]
    changes: list[tuple[str, str, Any]] = [
        ("POST", "devices/provision", {"deviceId": "edge-9"}),
        ("PATCH", "devices/edge-1", {"name": "New"}),
        ("POST", "devices/edge-1/suspend", {}),
        ("POST", "devices/edge-1/rotate-secret", {}),
        ("DELETE", "devices/edge-1", None),
        ("POST", "sessions", {"deviceId": "edge-2", "type": "diagnostic"}),
        ("POST", f"sessions/{session}/commands", {"type": "ping"}),
        ("POST", f"sessions/{session}/commands/{queued}/cancel", {}),
        ("POST", f"sessions/{session}/commands/{done}/retry", {}),
        ("POST", f"sessions/{session}/close", {}),
    ]

    async def state() -> Any:
        lists = ("sessions", f"sessions/{session}", "audit")
        devices = expect(await world.owner.get(f"{CUSTOMER}/devices"), 200)["devices"]
        # When a device was last seen is written behind.
        shown = [{**device, "lastSeen": None} for device in devices]
        return [shown, [expect(await world.owner.get(f"{CUSTOMER}/{one}"), 200) for one in lists]]

    before = await state()
    await database.execute("alter table aizen.audit add constraint full_up check (false) not valid")
    for method, path, body in changes:
        with capture_logs():
            failed = await world.owner.call(method, f"{CUSTOMER}/{path}", body)
        assert (failed.status, failed.code) == (500, "INTERNAL_ERROR"), path
        assert await state() == before, path
    expect(await device.heartbeat(), 200)
    await database.execute("alter table aizen.audit drop constraint full_up")
    assert [claimed["id"] for claimed in await device.claim(limit=10)] == [queued]


# Transcripts


async def test_a_transcript_tells_everything_that_happened_in_a_session_in_order(world: World) -> None:
    device = await world.device("edge-1")
    session_id = (await world.service.open_session("edge-1"))["id"]
    fix = await world.service.submit(session_id, REMEDIATION, parameters={"unit": "dns"})
    look = await world.owner.submit(session_id, "ping")
    expect(await world.owner.decide(session_id), 200)
    expect(await world.admin.decide(session_id, commandId=fix["id"], reason="Do it"), 200)
    claims = {claimed["id"]: claimed for claimed in await device.claim(limit=2)}
    expect(await device.release(claims[look["id"]]), 200)
    expect(await device.report(claims[fix["id"]], "failure"), 200)
    (again,) = await device.claim()
    expect(await world.owner.cancel(look, reason="Enough"), 200)
    expect(await device.report(again, "canceled"), 200)
    expect(await world.owner.post(f"{SESSIONS}/{session_id}/close"), 200)
    entries = await world.viewer.transcript(session_id)
    owner, admin = world.owner.user_id, world.admin.user_id
    first_claims = [("command.claimed", "edge-1")] * 2
    assert told(entries) == [
        ("session.opened", "service"),
        ("command.submitted", "service"),
        ("command.submitted", owner),
        ("session.approved", owner),
        ("command.queued", owner),
        ("command.approved", admin),
        *first_claims,
        ("command.released", "edge-1"),
        ("command.failed", "edge-1"),
        ("command.claimed", "edge-1"),
        ("command.cancel_requested", owner),
        ("command.canceled", "edge-1"),
        ("session.completed", owner),
    ]
    assert [entry.get("commandId") for entry in entries[:3]] == [None, fix["id"], look["id"]]
    ids = [int(entry["id"]) for entry in entries]
    assert ids == sorted(set(ids))
    moments = [entry["at"] for entry in entries]
    assert moments == sorted(moments)
    for entry in entries:
        assert set(entry) - {"commandId"} == {"id", "at", "event", "actor", "actorType", "details"}
    details = {entry["event"]: entry["details"] for entry in entries}
    assert details["command.approved"] == {"reason": "Do it", "digest": fix["digest"]}
    assert details["command.cancel_requested"] == {"reason": "Enough"}
    assert details["command.failed"]["status"] == "failure"


async def test_what_time_alone_does_is_in_the_transcript_as_the_gateways_doing(start_world: StartWorld) -> None:
    # Long enough for a sweep between the lease's end and the session's, however busy the machine is.
    world = await start_world(AIZEN_SESSION_TTL="6")
    device = await world.device("edge-1")
    session_id = (await world.owner.open_session("edge-1"))["id"]
    await world.owner.submit(session_id, "ping")
    await device.claim(visibilityTimeout=1000)
    await world.owner.submit(session_id, "dns", expiresInMs=1000)
    await world.owner.submit(session_id, REMEDIATION)
    await eventually(lambda: world.owner.session(session_id), lambda found: found["status"] == "expired")
    entries = await world.owner.transcript(session_id)
    by_gateway = [entry for entry in entries if entry["actorType"] == "gateway"]
    assert {entry["actor"] for entry in by_gateway} == {"gateway"}
    events = [entry["event"] for entry in by_gateway]
    assert sorted(events) == ["command.expired"] * 3 + ["command.lease_expired", "session.expired"]
    assert events[-1] == "session.expired"


async def test_a_transcript_is_the_sessions_own(world: World) -> None:
    await world.device("edge-1")
    first = await world.owner.open_session("edge-1")
    await world.owner.submit(first["id"])
    expect(await world.owner.post(f"{SESSIONS}/{first['id']}/close"), 200)
    second = await world.owner.open_session("edge-1")
    assert [entry["event"] for entry in await world.owner.transcript(second["id"])] == ["session.opened"]
    assert len(await world.owner.transcript(first["id"])) == 4


async def test_a_transcript_outlives_its_device(world: World) -> None:
    await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    assert (await world.owner.call("DELETE", f"{CUSTOMER}/devices/edge-1")).status == 204
    events = [entry["event"] for entry in await world.owner.transcript(session["id"])]
    assert events == ["session.opened", "session.canceled"]


async def test_a_device_reads_no_transcript(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    client: Client = device
    assert (await client.get(f"{SESSIONS}/{session['id']}/transcript")).status == 401
