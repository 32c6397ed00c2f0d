"""Commands that are pushed: how many ahead, in which order, for how long, from whichever instance (section 6)."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from aizen_gateway.storage.keys import DeviceKeys
from tests.support.clients import expect
from tests.support.gateway import RunningGateway
from tests.support.inside import comes_to
from tests.support.line import Line
from tests.support.pushes import finish, holds_sockets, pushed, result_of
from tests.support.sockets import device_socket
from tests.support.waiting import eventually, until_past

# Seconds within which what must not be pushed would have been.
_QUIET = 0.5


async def test_a_command_is_pushed_as_a_claim_would_answer_it(line: Line) -> None:
    parameters = {"target": "192.0.2.1", "count": 3}
    async with device_socket(line.device) as socket:
        command = await line.submit("ping", parameters=parameters, priority=2, timeoutMs=60_000)
        frame = await socket.expect("command")
        claimed = frame["payload"]
        assert claimed.keys() == {
            *("id", "type", "parameters", "priority", "sessionId", "claimToken", "visibleUntil", "leaseMs"),
            *("attempt", "timeoutMs", "expiresAt", "digest", "timestamp"),
        }
        assert {name: claimed[name] for name in ("id", "digest", "priority", "sessionId", "expiresAt")} == {
            name: command[name] for name in ("id", "digest", "priority", "sessionId", "expiresAt")
        }
        assert (claimed["type"], claimed["parameters"], claimed["timeoutMs"]) == ("ping", parameters, 60_000)
        assert (claimed["attempt"], claimed["leaseMs"]) == (1, 300_000)
        seen = await line.seen(command)
        assert (seen["status"], seen["attempt"]) == ("claimed", 1)


async def test_a_push_carries_the_request_id_of_the_submission(line: Line) -> None:
    async with device_socket(line.device) as socket:
        owner = line.world.owner
        path = f"/api/v1/customer/sessions/{line.session_id}/commands"
        reply = await owner.call("POST", path, {"type": "ping"}, headers={"X-Request-ID": "submitted-1"})
        expect(reply, 201)
        assert (await socket.expect("command"))["requestId"] == "submitted-1"


async def test_what_waited_before_the_socket_opened_is_pushed(line: Line) -> None:
    commands = [await line.submit() for _ in range(3)]
    async with device_socket(line.device, "?prefetch=3") as socket:
        assert [(await pushed(socket))["id"] for _ in commands] == [command["id"] for command in commands]


async def test_no_more_than_prefetch_are_outstanding_and_results_make_room(line: Line) -> None:
    for prefetch in (1, 2, 10):
        commands = [await line.submit() for _ in range(prefetch + 2)]
        async with device_socket(line.device, f"?prefetch={prefetch}") as socket:
            held = [await pushed(socket) for _ in range(prefetch)]
            assert await socket.silent(_QUIET)
            await finish(socket, held.pop(0))
            held.append(await pushed(socket))
            # The device may also answer over REST.
            expect(await line.device.report(held.pop(0)), 200)
            held.append(await pushed(socket))
            assert await socket.silent(_QUIET / 2)
            for claimed in held:
                await finish(socket, claimed)
            assert [(await line.seen(command))["status"] for command in commands] == ["succeeded"] * len(commands)


async def test_without_prefetch_nothing_is_pushed_and_claims_are_answered(line: Line) -> None:
    async with device_socket(line.device, "?prefetch=0") as socket:
        command = await line.submit()
        assert await socket.silent(_QUIET)
        answer = await socket.ask("claim", {"limit": 2, "visibilityTimeout": 5000}, answer="commands")
        (claimed,) = answer["commands"]
        assert (claimed["id"], claimed["leaseMs"]) == (command["id"], 5000)
        assert (await socket.ask("claim", {}, answer="commands")) == {"commands": []}


async def test_claims_come_on_top_of_what_is_pushed(line: Line) -> None:
    commands = [await line.submit() for _ in range(3)]
    async with device_socket(line.device) as socket:
        first = await pushed(socket)
        (second,) = (await socket.ask("claim", {}, answer="commands"))["commands"]
        assert [first["id"], second["id"]] == [command["id"] for command in commands[:2]]
        # The end of what was claimed is no reason to push more.
        await finish(socket, second)
        assert await socket.silent(_QUIET)
        await finish(socket, first)
        assert (await pushed(socket))["id"] == commands[2]["id"]


async def test_the_most_urgent_is_pushed_first_and_the_oldest_of_the_urgent(line: Line) -> None:
    priorities = [5, 10, 1, 5, 1]
    commands = [await line.submit(priority=priority) for priority in priorities]
    async with device_socket(line.device) as socket:
        order = []
        for _ in commands:
            claimed = await pushed(socket)
            order.append(claimed["id"])
            await finish(socket, claimed)
    assert order == [commands[index]["id"] for index in (2, 4, 0, 3, 1)]


async def test_what_is_pushed_is_leased_for_the_visibility_timeout_and_pushed_again_after_it(line: Line) -> None:
    command = await line.submit()
    async with device_socket(line.device, "?visibilityTimeout=1000") as socket:
        first = await pushed(socket)
        assert first["leaseMs"] == 1000
        again = await pushed(socket)
        assert (again["id"], again["attempt"]) == (command["id"], 2)
        assert again["claimToken"] != first["claimToken"]
        await socket.send("command_result", result_of(first), "late")
        assert (await socket.expect("error"))["payload"]["code"] == "INVALID_CLAIM_TOKEN"
        assert (await finish(socket, again))["status"] == "succeeded"


async def test_a_lease_that_was_extended_still_takes_its_place(line: Line) -> None:
    for _ in range(2):
        await line.submit()
    async with device_socket(line.device, "?visibilityTimeout=1000") as socket:
        first = await pushed(socket)
        # Over REST, of which the socket is not told.
        expect(await line.device.extend(first, extensionMs=30_000), 200)
        await until_past(first["visibleUntil"])
        assert await socket.silent(_QUIET)
        body = {"commandId": first["id"], "claimToken": first["claimToken"], "extensionMs": 60_000}
        assert (await socket.ask("extend", body, answer="ack"))["success"] is True
        await finish(socket, first)
        assert (await pushed(socket))["id"] != first["id"]


async def test_what_is_released_is_pushed_again_without_counting(line: Line) -> None:
    await line.submit()
    async with device_socket(line.device) as socket:
        first = await pushed(socket)
        body = {"commandId": first["id"], "claimToken": first["claimToken"]}
        assert await socket.ask("release", body, answer="ack") == {"success": True}
        again = await pushed(socket)
        assert (again["id"], again["attempt"]) == (first["id"], 1)
        expect(await line.device.release(again), 200)
        assert (await pushed(socket))["attempt"] == 1


async def test_a_command_submitted_at_one_instance_is_pushed_by_another(line: Line, second: RunningGateway) -> None:
    async with device_socket(line.at(second)) as socket:
        for _ in range(3):
            command = await line.submit()
            claimed = await pushed(socket)
            assert claimed["id"] == command["id"]
            expect(await line.device.report(claimed), 200)


async def test_an_approved_command_is_pushed(line: Line, second: RunningGateway) -> None:
    async with device_socket(line.at(second)) as socket:
        command = await line.submit("restart_dhcp")
        assert await socket.silent(_QUIET / 2)
        expect(await line.world.admin.decide(line.session_id, commandId=command["id"]), 200)
        claimed = await pushed(socket)
        assert (claimed["id"], claimed["digest"]) == (command["id"], command["digest"])


async def test_a_push_is_no_use_of_the_token(line: Line, valkey: Redis) -> None:
    keys = DeviceKeys.of(line.device.device_id)
    async with device_socket(line.device) as socket:
        # The greeting is sent before the first look.
        opened = await valkey.hvals(keys.sessions)
        seen = await valkey.hget(keys.device, "seen")
        await line.submit()
        claimed = await pushed(socket)
        assert await valkey.hvals(keys.sessions) == opened
        assert await valkey.hget(keys.device, "seen") == seen
        await finish(socket, claimed)
        assert await valkey.hvals(keys.sessions) != opened


async def test_a_socket_that_ends_while_it_claims_keeps_nothing(line: Line, gateway: RunningGateway) -> None:
    for round_ in range(8):
        command = await line.approved()
        async with device_socket(line.device, "?prefetch=10") as socket:
            # Cut at another moment of the claim each time.
            await asyncio.sleep(0.002 * round_)
            assert socket.ws._response.connection is not None
            transport = socket.ws._response.connection.transport
            assert transport is not None
            transport.abort()
        await holds_sockets(gateway, 0)
        (claimed,) = await eventually(line.device.claim, bool)
        assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
        expect(await line.device.report(claimed), 200)


async def test_a_command_that_expired_unseen_is_never_pushed(line: Line) -> None:
    async with device_socket(line.device) as socket:
        first, late = await line.submit(), await line.submit(expiresInMs=1000)
        claimed = await pushed(socket)
        await comes_to(line.world, late, "expired")
        await finish(socket, claimed)
        assert claimed["id"] == first["id"]
        assert await socket.silent(_QUIET)
