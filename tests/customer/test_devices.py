"""What a customer does with devices (contract section 4), and what it ends on every instance (section 2)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.clients import API, DeviceClient, World, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.waiting import TIME, eventually

DEVICES = f"{API}/customer/devices"
CODE = re.compile(r"[0-9A-HJKMNP-TV-Z]{5}-[0-9A-HJKMNP-TV-Z]{5}")


async def listed(world: World, query: str = "") -> Any:
    return expect(await world.owner.get(f"{DEVICES}{query}"), 200)


async def ids(world: World, query: str = "") -> set[str]:
    return {device["id"] for device in (await listed(world, query))["devices"]}


async def register(world: World, device_id: str, code: str) -> Any:
    return await world.anyone().post(f"{API}/device/register", {"deviceId": device_id, "activationCode": code})


async def one_of_each(world: World) -> None:
    """A device in every status, named after it."""
    await world.owner.provision("provisioned-1")
    for status in ("online", "error", "offline"):
        device = await world.device(f"{status}-1")
        expect(await device.heartbeat(status), 200)
    await world.device("silent-1")
    await world.device("suspended-1")
    expect(await world.owner.post(f"{DEVICES}/suspended-1/suspend"), 200)


# The list


async def test_a_list_has_the_contracts_fields_and_the_newest_first(world: World) -> None:
    await world.owner.provision("edge-1", name="Edge router", location="Basement")
    device = await world.device("edge-2")
    await device.heartbeat()
    body = await listed(world)
    assert (body["total"], body["limit"], body["offset"]) == (2, 50, 0)
    assert set(body) == {"devices", "total", "limit", "offset"}
    newest, oldest = body["devices"]
    assert oldest == {
        "id": "edge-1",
        "name": "Edge router",
        "status": "provisioned",
        "lastSeen": None,
        "location": "Basement",
        "registeredAt": None,
    }
    assert (newest["id"], newest["name"], newest["status"], newest["location"]) == ("edge-2", "edge-2", "online", None)
    assert TIME.fullmatch(newest["registeredAt"])


async def test_the_list_is_filtered_by_status(world: World) -> None:
    await one_of_each(world)
    found = {
        status: await ids(world, f"?status={status}") for status in ("online", "error", "provisioned", "suspended")
    }
    assert found == {status: {f"{status}-1"} for status in found}
    assert await ids(world, "?status=offline") == {"offline-1", "silent-1"}
    everything = await ids(world)
    assert len(everything) == 6
    assert await ids(world, "?status=all") == await ids(world, "?status=") == everything
    refused = await world.owner.get(f"{DEVICES}?status=asleep")
    assert (refused.status, list(refused.fields)) == (400, ["status"])


async def test_the_list_is_cut_by_limit_and_offset_and_total_counts_all_that_fit(world: World) -> None:
    for number in range(5):
        await world.owner.provision(f"edge-{number}")
    pages = [await listed(world, f"?limit=2&offset={offset}") for offset in (0, 2, 4, 6)]
    shown = [[device["id"] for device in page["devices"]] for page in pages]
    assert shown == [["edge-4", "edge-3"], ["edge-2", "edge-1"], ["edge-0"], []]
    assert [(page["total"], page["limit"], page["offset"]) for page in pages] == [(5, 2, n) for n in (0, 2, 4, 6)]


async def test_the_search_finds_parts_of_id_name_and_location_in_any_case(world: World) -> None:
    await world.owner.provision("edge-1", name="Main Router", location="Z\u00fcrich, 50% full")
    await world.owner.provision("core_2", name="Switch", location="Bern")
    searches = {
        "EDGE": {"edge-1"},
        "router": {"edge-1"},
        "z%C3%BCrich": {"edge-1"},
        "bern": {"core_2"},
        "r": {"edge-1", "core_2"},
        "%25": {"edge-1"},
        "e_2": {"core_2"},
        "e-_": set(),
        "'": set(),
        "": {"edge-1", "core_2"},
    }
    assert {text: await ids(world, f"?search={text}") for text in searches} == searches
    body = await listed(world, "?search=r&status=provisioned&limit=1")
    assert (len(body["devices"]), body["total"]) == (1, 2)


# Provisioning


async def test_provisioning_gives_an_activation_code_for_a_day(world: World) -> None:
    reply = await world.owner.post(f"{DEVICES}/provision", {"deviceId": "edge-1"})
    body = expect(reply, 201)
    assert set(body) == {"device", "instructions"}
    assert set(body["device"]) == {"id", "activationCode", "expiresAt"}
    assert body["device"]["id"] == "edge-1"
    assert CODE.fullmatch(body["device"]["activationCode"])
    assert TIME.fullmatch(body["device"]["expiresAt"])
    lasts = datetime.fromisoformat(body["device"]["expiresAt"]) - datetime.now(UTC)
    assert 23.9 < lasts.total_seconds() / 3600 <= 24
    assert body["instructions"]


async def test_a_device_id_has_the_contracts_form(world: World) -> None:
    for good in ("abc", "A-1_b", "0" * 64, "z--"):
        expect(await world.owner.post(f"{DEVICES}/provision", {"deviceId": good}), 201)
    for bad in ("ab", "0" * 65, "-abc", "_abc", "a.b.c", "a b c", "abc\n", "\u00e4bc", "abc/", "", None, 123, ["abc"]):
        reply = await world.owner.post(f"{DEVICES}/provision", {"deviceId": bad})
        assert (reply.status, reply.code, list(reply.fields)) == (400, "INVALID_REQUEST", ["deviceId"]), bad
    missing = await world.owner.post(f"{DEVICES}/provision")
    assert missing.fields == {"deviceId": ["Missing data for required field."]}


async def test_provisioning_again_before_registration_gives_a_new_code_and_voids_the_old(world: World) -> None:
    first = await world.owner.provision("edge-1", name="First", location="Here")
    second = await world.admin.provision("edge-1", name="Second")
    assert first["activationCode"] != second["activationCode"]
    refused = await register(world, "edge-1", first["activationCode"])
    assert (refused.status, refused.code) == (401, "INVALID_ACTIVATION_CODE")
    expect(await register(world, "edge-1", second["activationCode"]), 201)
    (device,) = (await listed(world))["devices"]
    assert (device["name"], device["location"]) == ("Second", "Here")


async def test_a_device_that_has_registered_is_409_whatever_became_of_it(world: World) -> None:
    await one_of_each(world)
    for device_id in ("online-1", "silent-1", "suspended-1"):
        reply = await world.owner.post(f"{DEVICES}/provision", {"deviceId": device_id})
        assert (reply.status, reply.code) == (409, "DEVICE_EXISTS")
    expect(await world.owner.post(f"{DEVICES}/online-1/rotate-secret"), 200)
    reply = await world.owner.post(f"{DEVICES}/provision", {"deviceId": "online-1"})
    assert (reply.status, reply.code) == (409, "DEVICE_EXISTS")


async def test_an_id_goes_to_exactly_one_of_many_customers_that_want_it_at_once(
    world: World, start_gateway: StartGateway
) -> None:
    other, elsewhere = await world.another(), (await start_gateway()).url
    owners = [world.owner, replace(other.owner, url=elsewhere), other.owner, replace(world.owner, url=elsewhere)]
    body = {"deviceId": "wanted-1"}
    replies = await asyncio.gather(*(owner.post(f"{DEVICES}/provision", body) for owner in owners))
    mine = [reply.status for reply in replies[::3]]
    theirs = [reply.status for reply in replies[1:3]]
    # The winner's second call gives its device a new code.
    assert sorted([mine, theirs]) == [[201, 201], [409, 409]]
    assert (await ids(world) == {"wanted-1"}) == (mine == [201, 201])


# Status


async def test_the_status_of_a_device_has_the_contracts_fields(world: World) -> None:
    await world.owner.provision("edge-1", name="Edge", location="Roof")
    assert await world.owner.status("edge-1") == {
        "id": "edge-1",
        "name": "Edge",
        "location": "Roof",
        "status": "provisioned",
        "connection": "none",
        "lastSeen": None,
        "lastHeartbeat": None,
        "metrics": None,
        "diagnostics": None,
        "pendingCommands": 0,
        "registeredAt": None,
    }


async def test_a_heartbeat_shows_at_once_on_every_instance(world: World, start_gateway: StartGateway) -> None:
    device = await world.device("edge-1")
    metrics = {"cpu": 12.5, "memory": 48, "uptime": 86400, "load5": 0.25}
    expect(await device.heartbeat("degraded", metrics=metrics, diagnostics={"disk": ["ok", None]}), 200)
    elsewhere = replace(world.viewer, url=(await start_gateway()).url)
    for person in (world.owner, elsewhere):
        status = await person.status("edge-1")
        assert (status["status"], status["connection"]) == ("online", "polling")
        assert (status["metrics"], status["diagnostics"]) == (metrics, {"disk": ["ok", None]})
        assert TIME.fullmatch(status["lastHeartbeat"])
        assert status["lastSeen"] >= status["lastHeartbeat"]


async def test_a_device_that_only_polls_for_commands_is_seen_polling(world: World) -> None:
    device = await world.device("edge-1")
    assert await device.claim() == []
    status = await world.owner.status("edge-1")
    assert (status["connection"], status["lastHeartbeat"]) == ("polling", None)
    assert TIME.fullmatch(status["lastSeen"])


async def test_error_and_offline_show_as_such_and_the_other_words_as_online(world: World) -> None:
    device = await world.device("edge-1")
    shown = {}
    for word in ("online", "error", "busy", "offline", "healthy", "error", "degraded"):
        expect(await device.heartbeat(word), 200)
        shown[word] = (await world.owner.status("edge-1"))["status"]
        assert await ids(world, f"?status={shown[word]}") == {"edge-1"}
    assert shown == {
        "online": "online",
        "busy": "online",
        "healthy": "online",
        "degraded": "online",
        "error": "error",
        "offline": "offline",
    }


async def test_a_device_that_falls_silent_is_offline_after_the_heartbeat_timeout(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_HEARTBEAT_TIMEOUT="1")
    device = await world.device("edge-1")
    expect(await device.heartbeat(metrics={"cpu": 1}), 200)
    status = await eventually(lambda: world.owner.status("edge-1"), lambda found: found["status"] == "offline")
    assert (status["connection"], status["metrics"]) == ("none", {"cpu": 1})
    await eventually(lambda: ids(world, "?status=offline"), lambda found: found == {"edge-1"}, within=5)


async def test_the_status_counts_what_waits_to_be_claimed_and_names_the_open_session(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    for kind in ("ping", "dns", "restart_service"):
        await world.owner.submit(session["id"], kind)
    status = await world.owner.status("edge-1")
    assert (status["activeSession"], status["pendingCommands"]) == (session["id"], 2)
    await device.claim()
    assert (await world.owner.status("edge-1"))["pendingCommands"] == 1
    expect(await world.owner.post(f"{API}/customer/sessions/{session['id']}/close"), 200)
    status = await world.owner.status("edge-1")
    assert (status.get("activeSession"), status["pendingCommands"]) == (None, 0)


# Changes


async def test_name_and_location_change_apart_and_a_location_can_be_taken_away(world: World) -> None:
    await world.owner.provision("edge-1", name="Old", location="Cellar")
    path = f"{DEVICES}/edge-1"
    seen = []
    for change in ({"name": "New"}, {"location": "Roof"}, {"location": None}, {}, {"name": "A", "location": "B"}):
        device = expect(await world.owner.call("PATCH", path, change), 200)["device"]
        assert set(device) == {"id", "name", "status", "lastSeen", "location", "registeredAt"}
        seen.append((device["name"], device["location"]))
    assert seen == [("New", "Cellar"), ("New", "Roof"), ("New", None), ("New", None), ("A", "B")]
    status = await world.owner.status("edge-1")
    assert (status["name"], status["location"]) == ("A", "B")


async def test_a_change_that_makes_no_sense_is_400_and_changes_nothing(world: World) -> None:
    await world.owner.provision("edge-1", name="Old")
    for bad, field in (
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": None}, "name"),
        ({"name": 5}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"location": "x" * 201}, "location"),
        ({"location": ["here"]}, "location"),
        ({"name": "New", "status": "online"}, "status"),
        ({"name": "New", "deviceId": "edge-2"}, "deviceId"),
    ):
        reply = await world.owner.call("PATCH", f"{DEVICES}/edge-1", bad)
        assert (reply.status, reply.code, list(reply.fields)) == (400, "INVALID_REQUEST", [field]), bad
    assert (await world.owner.status("edge-1"))["name"] == "Old"


async def test_suspending_ends_sessions_and_keeps_the_device_out_until_it_is_resumed(world: World) -> None:
    device = await world.device("edge-1")
    await device.heartbeat()
    session = await world.owner.open_session("edge-1")
    claimed_one = await world.owner.submit(session["id"])
    await device.claim()
    queued = await world.owner.submit(session["id"])
    reply = await world.owner.post(f"{DEVICES}/edge-1/suspend")
    assert expect(reply, 200)["device"]["status"] == "suspended"
    suspended = await world.owner.status("edge-1")
    assert (suspended["status"], suspended["connection"]) == ("suspended", "none")
    ended = await world.owner.session(session["id"])
    assert ended["status"] == "canceled"
    states = {command["id"]: command["status"] for command in ended["commands"]}
    assert states == {claimed_one["id"]: "cancel_requested", queued["id"]: "canceled"}
    assert (await device.heartbeat()).status == 401
    refused = await device.sign_in()
    assert (refused.status, refused.code) == (403, "DEVICE_SUSPENDED")
    opened = await world.owner.post(f"{API}/customer/sessions", {"deviceId": "edge-1", "type": "diagnostic"})
    assert (opened.status, opened.code) == (403, "DEVICE_SUSPENDED")
    expect(await world.owner.post(f"{DEVICES}/edge-1/suspend"), 200)
    resumed = expect(await world.owner.post(f"{DEVICES}/edge-1/resume"), 200)
    assert resumed["device"]["status"] == "offline"
    assert (await world.owner.status("edge-1"))["connection"] == "none"
    expect(await world.owner.post(f"{DEVICES}/edge-1/resume"), 200)
    expect(await device.sign_in(), 200)
    await world.owner.open_session("edge-1")


async def test_a_rotated_secret_is_void_at_once_and_the_new_code_gives_another(world: World) -> None:
    device = await world.device("edge-1")
    body = expect(await world.owner.post(f"{DEVICES}/edge-1/rotate-secret"), 200)
    assert set(body) == {"device", "instructions"}
    assert set(body["device"]) == {"id", "activationCode", "expiresAt"}
    assert CODE.fullmatch(body["device"]["activationCode"])
    assert (await device.heartbeat()).status == 401
    refused = await device.sign_in()
    assert (refused.status, refused.code) == (401, "INVALID_CREDENTIALS")
    registered = expect(await register(world, "edge-1", body["device"]["activationCode"]), 201)
    assert registered["deviceSecret"] != device.secret
    device.secret = registered["deviceSecret"]
    expect(await device.sign_in(), 200)


async def test_rotating_again_voids_the_code_before(world: World) -> None:
    await world.device("edge-1")
    codes = []
    for _ in range(2):
        reply = await world.owner.post(f"{DEVICES}/edge-1/rotate-secret")
        codes.append(expect(reply, 200)["device"]["activationCode"])
    assert (await register(world, "edge-1", codes[0])).status == 401
    expect(await register(world, "edge-1", codes[1]), 201)


async def test_deleting_answers_204_and_leaves_history(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    running = await world.owner.submit(session["id"])
    await device.claim()
    reply = await world.owner.call("DELETE", f"{DEVICES}/edge-1")
    assert (reply.status, reply.body) == (204, None)
    assert (await world.owner.call("DELETE", f"{DEVICES}/edge-1")).status == 404
    assert await ids(world) == set()
    assert (await device.heartbeat()).status == 401
    assert (await device.sign_in()).code == "INVALID_CREDENTIALS"
    ended = await world.owner.session(session["id"])
    assert ended["status"] == "canceled"
    assert [(command["id"], command["status"]) for command in ended["commands"]] == [(running["id"], "canceled")]
    records = expect(await world.owner.get(f"{API}/customer/audit?resource=device"), 200)["records"]
    actions = ["device.deleted", "device.registered", "device.provisioned"]
    assert [(record["action"], record["resourceId"]) for record in records] == [
        (action, "edge-1") for action in actions
    ]


async def test_a_deleted_devices_id_can_be_used_anew(world: World) -> None:
    first = await world.device("edge-1")
    expect(await world.owner.post(f"{DEVICES}/edge-1/rotate-secret"), 200)
    assert (await world.owner.call("DELETE", f"{DEVICES}/edge-1")).status == 204
    second = await world.device("edge-1")
    expect(await second.heartbeat(), 200)
    assert (await first.sign_in()).code == "INVALID_CREDENTIALS"


@pytest.mark.parametrize("ending", ["suspend", "rotate-secret", "delete"])
async def test_an_end_of_credentials_counts_at_once_on_every_instance(
    world: World, start_gateway: StartGateway, ending: str
) -> None:
    device = await world.device("edge-1")
    elsewhere: DeviceClient = replace(device, url=(await start_gateway()).url, headers=dict(device.headers))
    expect(await elsewhere.sign_in(), 200)
    for client in (device, elsewhere):
        expect(await client.heartbeat(), 200)
    if ending == "delete":
        assert (await world.owner.call("DELETE", f"{DEVICES}/edge-1")).status == 204
    else:
        expect(await world.owner.post(f"{DEVICES}/edge-1/{ending}"), 200)
    answers = []
    for client in (device, elsewhere):
        answers += [await client.heartbeat(), await client.post(f"{API}/device/commands/claim", {})]
    assert [(reply.status, reply.code) for reply in answers] == [(401, "UNAUTHENTICATED")] * 4


# System


async def test_system_tells_what_is_running(world: World) -> None:
    body = expect(await world.viewer.get(f"{API}/customer/system"), 200)
    assert set(body) == {
        "version",
        "build",
        "environment",
        "uptime",
        "services",
        "connections",
        "features",
        "limits",
    }
    assert set(body["services"]) == {"database", "redis"}
    assert body["version"] == expect(await world.anyone().get("/version"), 200)["version"]
    same = expect(await world.viewer.get(f"{API}/customer/system/info"), 200)
    assert {**same, "uptime": 0} == {**body, "uptime": 0}
