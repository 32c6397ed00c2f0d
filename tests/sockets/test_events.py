"""Events: what is told, with what in it, and in which order (section 6)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tests.support.clients import API, CustomerClient, World, expect
from tests.support.gateway import StartGateway
from tests.support.line import Line
from tests.support.portal import Frame, events, subscribe
from tests.support.sockets import SocketClient, device_socket, portal_socket
from tests.support.waiting import TIME

# A status never gives way to one of a lower rank, save that a lease that ran out brings a command back to the queue.
RANK = {
    "pending_approval": 0,
    "queued": 1,
    "claimed": 2,
    "cancel_requested": 3,
    "rejected": 4,
    "succeeded": 4,
    "failed": 4,
    "timed_out": 4,
    "canceled": 4,
    "expired": 4,
    "undeliverable": 4,
}


async def states(socket: SocketClient, command: Any, until: str) -> list[str]:
    """The states of a command as they are told, up to `until`; events of others are left out."""
    seen: list[str] = []
    while until not in seen:
        (event,) = await events(socket, 1)
        if event["type"] == "command_update" and event["payload"]["command"]["id"] == command["id"]:
            seen.append(event["payload"]["command"]["status"])
    return seen


def by_subject(frames: list[Frame]) -> dict[str, list[str]]:
    """The states of each command and session, in the order in which they were told."""
    found: dict[str, list[str]] = {}
    for frame in frames:
        for kind in ("command", "session"):
            if frame["type"] == f"{kind}_update":
                thing = frame["payload"][kind]
                found.setdefault(thing["id"], []).append(thing["status"])
    return found


def order(frame: Frame) -> tuple[int, ...]:
    return tuple(map(int, frame["eventId"].split("-")))


async def test_every_state_of_a_command_is_told(line: Line) -> None:
    owner = line.world.owner
    async with portal_socket(owner) as socket:
        await subscribe(socket, f"session:{line.session_id}")
        for status, final in (("success", "succeeded"), ("failure", "failed"), ("timeout", "timed_out")):
            claimed = await line.claimed()
            expect(await line.device.report(claimed, status), 200)
            assert await states(socket, claimed, final) == ["queued", "claimed", final]

        approved = await line.approved()
        await line.device.claim()
        expect(await owner.cancel(approved), 200)
        held = expect(await line.device.read(approved["id"]), 200)["command"]
        expect(await line.device.report(held, "canceled"), 200)
        told = ["pending_approval", "queued", "claimed", "cancel_requested", "canceled"]
        assert await states(socket, approved, "canceled") == told

        rejected = await line.submit("restart_dhcp")
        await owner.decide(line.session_id, approved=False, commandId=rejected["id"], reason="no")
        assert await states(socket, rejected, "rejected") == ["pending_approval", "rejected"]

        canceled = await line.submit()
        await owner.cancel(canceled)
        assert await states(socket, canceled, "canceled") == ["queued", "canceled"]

        released = await line.claimed()
        expect(await line.device.release(released), 200)
        await owner.cancel({"id": released["id"], "sessionId": line.session_id})
        assert await states(socket, released, "canceled") == ["queued", "claimed", "queued", "canceled"]


async def test_what_time_does_to_a_command_is_told(line: Line) -> None:
    async with portal_socket(line.world.owner) as one, portal_socket(line.world.owner) as two:
        await subscribe(one)
        await subscribe(two)
        undeliverable = await line.submit(maxDeliveries=1)
        assert await line.device.claim(visibilityTimeout=1000)
        expired = await line.submit(expiresInMs=1000)
        told = await asyncio.gather(
            states(one, undeliverable, "undeliverable"),
            states(two, expired, "expired"),
        )
        assert list(told) == [["queued", "claimed", "undeliverable"], ["queued", "expired"]]


async def test_a_command_is_told_as_rest_shows_it(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        await subscribe(socket)
        command = await line.submit(parameters={"target": "127.0.0.1"}, reason="why")
        (event,) = await events(socket, 1)
        assert event["payload"] == {"command": command}
        (claimed,) = await line.device.claim()
        expect(await line.device.report(claimed, output="done", result={"rtt": 1.5}), 200)
        _, last = await events(socket, 2)
        assert last["payload"]["command"] == await line.seen(command)
        assert "claimToken" not in str(last)


async def test_an_event_carries_the_id_of_the_call_that_caused_it(line: Line) -> None:
    owner, device, session = line.world.owner, line.device, line.session_id
    async with portal_socket(owner) as socket:
        await subscribe(socket)
        path = f"{API}/customer/sessions/{session}/commands"
        command = expect(await owner.post(path, {"type": "ping"}, X_Request_ID="submit-1"), 201)["command"]
        claim = await device.post(f"{API}/device/commands/claim", {}, X_Request_ID="claim-1")
        token = expect(claim, 200)["commands"][0]["claimToken"]
        result = {"claimToken": token, "status": "success", "executedAt": "2026-01-02T03:04:05Z", "duration": 1}
        await device.post(f"{API}/device/commands/{command['id']}/result", result, X_Request_ID="result-1")
        await device.post(f"{API}/device/heartbeat", {"status": "online"}, X_Request_ID="beat-1")
        await owner.post(f"{API}/customer/sessions/{session}/close", {}, X_Request_ID="close-1")
        told = await events(socket, 5)
        assert [frame["requestId"] for frame in told] == ["submit-1", "claim-1", "result-1", "beat-1", "close-1"]


async def test_a_message_on_the_socket_is_the_cause_of_what_it_causes(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        await subscribe(socket)
        await socket.send("send_command", {"sessionId": line.session_id, "type": "ping"}, "mine-1")
        (event,) = await events(socket, 1)
        assert event["requestId"] == "mine-1"
        assert (await socket.expect("command_queued"))["requestId"] == "mine-1"
        # What is no request id is echoed, and something better goes into the records.
        await socket.send("send_command", {"sessionId": line.session_id, "type": "ping"}, "no id ✓")
        (event,) = await events(socket, 1)
        assert event["requestId"] != "no id ✓"
        assert (await socket.expect("command_queued"))["requestId"] == "no id ✓"


async def test_what_waits_for_a_person_is_asked_for(line: Line) -> None:
    world = line.world
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        command = await line.submit("restart_dhcp")
        update, asked = await events(socket, 2)
        assert (update["type"], asked["type"]) == ("command_update", "approval_requested")
        assert asked["payload"] == {"command": command} == update["payload"]
        assert asked["room"] == f"session:{line.session_id}"
        other = await world.device()
        await events(socket, 2)
        session = await world.owner.open_session(other.device_id, "remediation")
        update, asked = await events(socket, 2)
        assert (update["type"], asked["type"]) == ("session_update", "approval_requested")
        assert asked["payload"] == update["payload"]
        assert asked["payload"]["session"]["id"] == session["id"]
        # A diagnostic in a session that waits needs nothing but the session's approval.
        await world.owner.submit(session["id"], "ping")
        expect(await world.owner.decide(session["id"]), 200)
        types = [frame["type"] for frame in await events(socket, 3)]
        assert types == ["command_update", "session_update", "command_update"]


async def test_every_state_of_a_session_is_told(world: World) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        done = await world.owner.open_session(device.device_id)
        expect(await world.owner.post(f"{API}/customer/sessions/{done['id']}/close", {}), 200)
        withdrawn = await world.owner.open_session(device.device_id, "remediation")
        expect(await world.owner.post(f"{API}/customer/sessions/{withdrawn['id']}/close", {}), 200)
        refused = await world.service.open_session(device.device_id)
        expect(await world.owner.decide(refused["id"], approved=False, reason="no"), 200)
        approved = await world.service.open_session(device.device_id)
        expect(await world.owner.decide(approved["id"]), 200)
        told = by_subject([frame for frame in await events(socket, 11) if frame["type"] == "session_update"])
        assert told == {
            done["id"]: ["active", "completed"],
            withdrawn["id"]: ["pending_approval", "canceled"],
            refused["id"]: ["pending_approval", "rejected"],
            approved["id"]: ["pending_approval", "active"],
        }


async def test_a_session_and_its_commands_end_together_before_the_portal(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        command = await line.submit()
        await subscribe(socket)
        expect(await line.world.owner.post(f"{API}/customer/sessions/{line.session_id}/close", {}), 200)
        first, second = await events(socket, 2)
        assert first["payload"]["command"]["id"] == command["id"]
        assert first["payload"]["command"]["status"] == "canceled"
        assert second["payload"]["session"] == {
            name: value
            for name, value in (await line.world.owner.session(line.session_id)).items()
            if name != "commands"
        }


async def test_the_status_of_a_device_is_told_with_each_change(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        device = await world.device("told-1")
        await device.heartbeat()
        await device.heartbeat()
        await device.heartbeat("error")
        await device.heartbeat("offline")
        path = f"{API}/customer/devices/told-1"
        expect(await world.owner.call("PATCH", path, {"name": "another"}), 200)
        expect(await world.owner.post(f"{path}/suspend", {}), 200)
        expect(await world.owner.post(f"{path}/resume", {}), 200)
        told = await events(socket, 7)
        assert {frame["type"] for frame in told} == {"device_status"}
        assert {frame["room"] for frame in told} == {"device:told-1"}
        assert [set(frame["payload"]) for frame in told] == [{"deviceId", "status", "connection", "lastSeen"}] * 7
        statuses = [frame["payload"]["status"] for frame in told]
        assert statuses == ["provisioned", "offline", "online", "error", "offline", "suspended", "offline"]
        assert [frame["payload"]["connection"] for frame in told[2:4]] == ["polling", "polling"]
        assert TIME.fullmatch(told[2]["payload"]["lastSeen"])
        assert await socket.silent(0.2)


async def test_a_device_on_a_socket_is_told_so(world: World) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        async with device_socket(device):
            (told,) = await events(socket, 1)
            assert (told["payload"]["status"], told["payload"]["connection"]) == ("online", "websocket")
        (told,) = await events(socket, 1)
        assert (told["payload"]["status"], told["payload"]["connection"]) == ("offline", "none")


async def test_event_ids_increase_over_all_that_a_customer_hears(line: Line, start_gateway: StartGateway) -> None:
    other = line.at(await start_gateway())
    async with portal_socket(line.world.owner) as socket:
        await subscribe(socket)
        for device in (line.device, other, line.device, other):
            claimed = await line.claimed()
            await device.report(claimed)
            await device.heartbeat()
        told = await events(socket, 13)
        assert all(isinstance(frame["eventId"], str) for frame in told)
        assert sorted(map(order, told)) == list(map(order, told))
        assert len({frame["eventId"] for frame in told}) == 13


async def test_what_happens_on_one_instance_is_heard_on_another(line: Line, start_gateway: StartGateway) -> None:
    other = await start_gateway()
    async with portal_socket(line.world.owner, url=other.url) as there, portal_socket(line.world.owner) as here:
        await subscribe(there)
        await subscribe(here)
        claimed = await line.claimed()
        expect(await line.at(other).report(claimed), 200)
        told = await events(there, 3)
        assert [frame["payload"]["command"]["status"] for frame in told] == ["queued", "claimed", "succeeded"]
        assert await events(here, 3) == told


async def test_nobody_hears_of_another_customer(line: Line) -> None:
    other = await line.world.another()
    async with portal_socket(other.owner) as socket:
        await subscribe(socket)
        await line.claimed()
        await line.device.heartbeat()
        await other.owner.provision("device-of-another")
        (told,) = await events(socket, 1)
        assert told["payload"]["deviceId"] == "device-of-another"


async def test_each_subject_is_told_in_order_however_many_change_it_at_once(
    line: Line, start_gateway: StartGateway
) -> None:
    """Results, cancels and claims of the same commands race on two instances."""
    elsewhere = await start_gateway()
    owners = [line.world.owner, replace(line.world.owner, url=elsewhere.url)]
    devices = [line.device, line.at(elsewhere)]
    count = 24
    async with portal_socket(line.world.owner, url=elsewhere.url) as socket:
        await subscribe(socket)
        commands = await asyncio.gather(*(_submit(owners[number % 2], line) for number in range(count)))

        async def work(number: int) -> None:
            for claimed in await devices[number % 2].claim(limit=4):
                await devices[(number + 1) % 2].report(claimed)

        async def cancel(number: int) -> None:
            await owners[number % 2].cancel(commands[number])

        await asyncio.gather(*(work(number) for number in range(8)), *(cancel(number) for number in range(count)))
        truth = {command["id"]: command["status"] for command in (await owners[0].session(line.session_id))["commands"]}
        told: list[Frame] = []
        while {subject: seen[-1] for subject, seen in by_subject(told).items()} != truth:
            told += await events(socket, 1)
    for seen in by_subject(told).values():
        assert seen[0] == "queued"
        assert [RANK[status] for status in seen] == sorted({RANK[status] for status in seen})
    assert len(truth) == count


async def _submit(owner: CustomerClient, line: Line) -> Any:
    return await owner.submit(line.session_id)
