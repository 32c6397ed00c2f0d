"""What belongs to another customer is answered exactly as what does not exist (contract section 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, Client, CustomerClient, DeviceClient, World, expect

CUSTOMER = f"{API}/customer"


@dataclass(frozen=True, slots=True)
class Ids:
    """A device, a session with it, and in that session a command that runs, one that waits, and one that has ended."""

    device: str
    session: str
    running: str
    waiting: str
    ended: str

    @classmethod
    def of_nothing(cls) -> Ids:
        return cls("nowhere-1", *(str(uuid4()) for _ in range(4)))


async def lived_in(world: World, device_id: str) -> tuple[Ids, DeviceClient, dict[str, Any]]:
    """A device in the middle of its work; with it its client and the command it has claimed."""
    device = await world.device(device_id)
    session = await world.owner.open_session(device_id)
    ended = await world.owner.submit(session["id"])
    claimed = (await device.claim())[0]
    await device.report(claimed)
    running = await world.owner.submit(session["id"])
    claimed = (await device.claim())[0]
    waiting = await world.owner.submit(session["id"], "restart_service")
    return Ids(device_id, session["id"], running["id"], waiting["id"], ended["id"]), device, claimed


def customer_calls(ids: Ids) -> list[tuple[str, str, Any]]:
    """Every call of the customer API that names a device, a session or a command."""
    one, those = f"{CUSTOMER}/devices/{ids.device}", f"{CUSTOMER}/sessions/{ids.session}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", f"{one}/status", None),
        ("GET", f"{one}/commands", None),
        ("GET", f"{one}/commands?status=queued&limit=1", None),
        ("PATCH", one, {"name": "Mine now"}),
        ("POST", f"{one}/suspend", {}),
        ("POST", f"{one}/resume", {}),
        ("POST", f"{one}/rotate-secret", {}),
        ("DELETE", one, None),
        ("POST", f"{CUSTOMER}/sessions", {"deviceId": ids.device, "type": "diagnostic"}),
        ("POST", f"{CUSTOMER}/sessions", {"deviceId": ids.device, "type": "remediation"}),
        ("GET", f"{CUSTOMER}/sessions?deviceId={ids.device}", None),
        ("GET", those, None),
        ("GET", f"{those}/transcript", None),
        ("POST", f"{those}/commands", {"type": "ping"}),
        ("POST", f"{those}/approve", {"approved": True}),
        ("POST", f"{those}/approve", {"approved": False, "reason": "No"}),
        ("POST", f"{those}/close", {}),
    ]
    for command in (ids.running, ids.waiting, ids.ended):
        calls += [
            ("POST", f"{those}/approve", {"approved": True, "commandId": command}),
            ("POST", f"{those}/approve", {"approved": True, "commandId": command, "digest": "sha256:0"}),
            ("POST", f"{those}/commands/{command}/cancel", {}),
            ("POST", f"{those}/commands/{command}/cancel", {"force": True}),
            ("POST", f"{those}/commands/{command}/retry", {}),
        ]
    return calls


async def answered(client: Client, method: str, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
    """All that an answer can tell: its status, its body and its headers but the time of day."""
    reply = await client.call(method, path, body, headers={"X-Request-ID": "the-same"})
    return reply.status, reply.body, {name: value for name, value in reply.headers.items() if name != "Date"}


async def state_of(world: World, ids: Ids) -> Any:
    """Everything the owner can see of the device and of what happened to it."""
    return [
        await world.owner.status(ids.device),
        await world.owner.session(ids.session),
        await world.owner.transcript(ids.session),
        expect(await world.owner.get(f"{CUSTOMER}/audit"), 200),
        expect(await world.owner.get(f"{CUSTOMER}/approvals"), 200),
    ]


async def test_every_call_about_anothers_things_is_answered_as_about_nothing_and_changes_nothing(world: World) -> None:
    other = await world.another()
    theirs, _, _ = await lived_in(other, "theirs-1")
    before = await state_of(other, theirs)
    strangers: list[CustomerClient] = [world.owner, world.service]
    for stranger in strangers:
        pairs = zip(customer_calls(theirs), customer_calls(Ids.of_nothing()), strict=True)
        for (method, path, body), (_, nowhere, about_nothing) in pairs:
            found = await answered(stranger, method, path, body)
            assert found == await answered(stranger, method, nowhere, about_nothing), (method, path)
            assert found[0] == (200 if "?deviceId=" in path else 404 if stranger is world.owner else found[0])
            assert found[0] in (200, 403, 404)
    assert await state_of(other, theirs) == before


async def test_a_call_about_anothers_things_does_not_even_wait_for_who_works_on_them(
    world: World, database: Database
) -> None:
    other = await world.another()
    theirs, _, _ = await lived_in(other, "theirs-1")
    async with database.unit() as connection:
        await connection.execute("select 1 from aizen.devices for update")
        await connection.execute("select 1 from aizen.sessions for update")
        await connection.execute("select 1 from aizen.commands for update")
        pairs = zip(customer_calls(theirs), customer_calls(Ids.of_nothing()), strict=True)
        for (method, path, body), (_, nowhere, about_nothing) in pairs:
            found = await answered(world.owner, method, path, body)
            assert found == await answered(world.owner, method, nowhere, about_nothing), (method, path)


async def test_a_command_of_another_session_is_answered_as_none_even_under_a_session_of_ones_own(world: World) -> None:
    other = await world.another()
    theirs, _, _ = await lived_in(other, "theirs-1")
    ours, _, _ = await lived_in(world, "ours-1")
    await world.device("ours-2")
    mine = await world.owner.open_session("ours-2")
    those = f"{CUSTOMER}/sessions/{mine['id']}"
    for foreign in (theirs.running, theirs.waiting, theirs.ended, ours.running, ours.waiting, ours.ended):
        for suffix in ("cancel", "retry"):
            found = await answered(world.owner, "POST", f"{those}/commands/{foreign}/{suffix}", {})
            nothing = await answered(world.owner, "POST", f"{those}/commands/{uuid4()}/{suffix}", {})
            assert found == nothing
            assert (found[0], found[1]["error"]["code"]) == (404, "COMMAND_NOT_FOUND")
        decision: dict[str, Any] = {"approved": True, "commandId": foreign}
        found = await answered(world.owner, "POST", f"{those}/approve", decision)
        decision["commandId"] = str(uuid4())
        assert found == await answered(world.owner, "POST", f"{those}/approve", decision)
        assert (found[0], found[1]["error"]["code"]) == (404, "COMMAND_NOT_FOUND")


async def test_an_id_that_can_be_none_is_answered_as_one_that_is_none(world: World) -> None:
    nothing = Ids.of_nothing()
    for bad in ("x", "a b", "%00", "..%2f..", "%F0%9F%92%A9", "0" * 65):
        spoiled = Ids(bad, bad, bad, bad, bad)
        pairs = zip(customer_calls(spoiled), customer_calls(nothing), strict=True)
        for (method, path, body), (_, nowhere, about_nothing) in pairs:
            if "deviceId" in str(body) or "?deviceId" in path or "commandId" in str(body):
                continue  # A body or a query that cannot be right is 400.
            found = await answered(world.owner, method, path, body)
            assert found == await answered(world.owner, method, nowhere, about_nothing), (method, path)


async def test_lists_searches_and_the_audit_log_show_nothing_of_others(world: World) -> None:
    other = await world.another()
    await lived_in(other, "theirs-1")
    assert expect(await world.owner.get(f"{CUSTOMER}/devices?search=theirs"), 200)["total"] == 0
    for path, name in (
        ("devices", "devices"),
        ("sessions", "sessions"),
        ("approvals", "approvals"),
        ("audit", "records"),
        ("audit?resource=device", "records"),
        ("sessions?deviceId=theirs-1", "sessions"),
    ):
        assert expect(await world.owner.get(f"{CUSTOMER}/{path}"), 200)[name] == [], path


async def test_a_cursor_of_another_customer_opens_nothing_of_its_lists(world: World) -> None:
    other = await world.another()
    for number in range(3):
        await other.owner.provision(f"theirs-{number}")
        await other.owner.open_session(f"theirs-{number}")
    for path, name in (("sessions", "sessions"), ("audit", "records")):
        page = expect(await other.owner.get(f"{CUSTOMER}/{path}?limit=1"), 200)
        assert page["nextCursor"]
        seen = expect(await world.owner.get(f"{CUSTOMER}/{path}?cursor={page['nextCursor']}"), 200)
        assert seen == {name: [], "nextCursor": None}


async def test_a_taken_device_id_is_409_and_does_not_tell_whose_it_is(world: World) -> None:
    other = await world.another()
    await other.owner.provision("theirs-1", name="Their name", location="Their place")
    await world.device("ours-1")
    answers = []
    for device_id in ("theirs-1", "ours-1"):
        body = {"deviceId": device_id, "name": "New name"}
        answers.append(await answered(world.owner, "POST", f"{CUSTOMER}/devices/provision", body))
    assert answers[0] == answers[1]
    assert (answers[0][0], answers[0][1]["error"]["code"]) == (409, "DEVICE_EXISTS")
    devices = expect(await other.owner.get(f"{CUSTOMER}/devices"), 200)["devices"]
    assert [device["name"] for device in devices] == ["Their name"]


async def test_a_device_sees_no_command_but_its_own(world: World) -> None:
    other = await world.another()
    theirs, _, claimed = await lived_in(other, "theirs-1")
    sibling, _, claimed_by_sibling = await lived_in(world, "ours-1")
    device = await world.device("ours-2")
    before = await state_of(other, theirs), await state_of(world, sibling)
    result = {"status": "success", "executedAt": "2026-01-02T03:04:05Z", "duration": 1}
    for lease in (claimed, claimed_by_sibling):
        token = {"claimToken": lease["claimToken"]}
        for method, suffix, body in (
            ("GET", "", None),
            ("POST", "/extend", token),
            ("POST", "/release", token),
            ("POST", "/result", {**token, **result}),
        ):
            found = await answered(device, method, f"{API}/device/commands/{lease['id']}{suffix}", body)
            nothing = await answered(device, method, f"{API}/device/commands/{uuid4()}{suffix}", body)
            assert found == nothing, suffix
            assert (found[0], found[1]["error"]["code"]) == (404, "COMMAND_NOT_FOUND")
    assert await device.claim() == []
    assert (await state_of(other, theirs), await state_of(world, sibling)) == before


async def test_a_deleted_device_is_answered_as_one_that_never_was(world: World) -> None:
    await world.device("ours-1")
    assert (await world.owner.call("DELETE", f"{CUSTOMER}/devices/ours-1")).status == 204
    for (method, path, body), (_, nowhere, about_nothing) in zip(
        customer_calls(Ids("ours-1", *["x"] * 4)), customer_calls(Ids("nowhere-1", *["x"] * 4)), strict=True
    ):
        if "ours-1" not in path + str(body):
            continue
        found = await answered(world.owner, method, path, body)
        assert found == await answered(world.owner, method, nowhere, about_nothing), (method, path)


async def test_a_new_owner_of_a_deleted_devices_id_sees_nothing_of_its_former_life(world: World) -> None:
    other = await world.another()
    ids, _, claimed = await lived_in(other, "edge-1")
    assert (await other.owner.call("DELETE", f"{CUSTOMER}/devices/edge-1")).status == 204
    device = await world.device("edge-1")
    status = await world.owner.status("edge-1")
    assert (status["status"], status["metrics"], status["pendingCommands"]) == ("offline", None, 0)
    assert "activeSession" not in status
    assert await device.claim() == []
    assert (await device.read(claimed["id"])).status == 404
    assert expect(await world.owner.get(f"{CUSTOMER}/devices/edge-1/commands"), 200)["commands"] == []
    assert expect(await world.owner.get(f"{CUSTOMER}/sessions?deviceId=edge-1"), 200)["sessions"] == []
    assert (await world.owner.get(f"{CUSTOMER}/sessions/{ids.session}")).status == 404
    old = await other.owner.session(ids.session)
    assert (old["status"], {command["status"] for command in old["commands"]}) == (
        "canceled",
        {"succeeded", "canceled"},
    )
