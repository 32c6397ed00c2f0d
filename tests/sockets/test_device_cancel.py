"""A device is told to stop what it may be at work on, wherever its socket is, however it got it (section 6)."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from tests.support.clients import expect
from tests.support.gateway import RunningGateway
from tests.support.inside import comes_to
from tests.support.line import Line
from tests.support.pushes import pushed, result_of, unheard
from tests.support.sockets import SocketClient, device_socket

_QUIET = 0.5


async def canceled(socket: SocketClient) -> dict[str, Any]:
    return dict((await socket.expect("command_canceled"))["payload"])


async def cancel(line: Line, command: dict[str, Any], **fields: Any) -> None:
    expect(await line.world.owner.cancel({**command, "sessionId": line.session_id}, **fields), 200)


async def test_a_cancel_reaches_the_device_with_its_reason_and_its_request_id(line: Line) -> None:
    async with device_socket(line.device) as socket:
        command = await line.submit()
        claimed = await pushed(socket)
        path = f"/api/v1/customer/sessions/{line.session_id}/commands/{command['id']}/cancel"
        body = {"reason": "wrong device, naïve"}
        expect(await line.world.owner.call("POST", path, body, headers={"X-Request-ID": "cancel-1"}), 200)
        frame = await socket.expect("command_canceled")
        assert frame["requestId"] == "cancel-1"
        assert frame["payload"] == {"id": command["id"], "reason": "wrong device, naïve"}
        # What the device then answers counts.
        body = {"commandId": claimed["id"], "claimToken": claimed["claimToken"]}
        assert (await socket.ask("extend", body, answer="ack"))["cancelRequested"] is True
        answer = await socket.ask("command_result", result_of(claimed, "canceled"), answer="ack")
        assert answer["status"] == "canceled"
        assert await socket.silent(_QUIET / 2)


async def test_a_cancel_without_a_reason_has_none(line: Line) -> None:
    async with device_socket(line.device) as socket:
        command = await line.submit()
        await pushed(socket)
        await cancel(line, command)
        assert await canceled(socket) == {"id": command["id"], "reason": None}


async def test_a_forced_cancel_reaches_the_device_and_makes_room(line: Line) -> None:
    async with device_socket(line.device) as socket:
        command, following = await line.submit(), await line.submit()
        claimed = await pushed(socket)
        await cancel(line, command, reason="at once", force=True)
        assert await canceled(socket) == {"id": command["id"], "reason": "at once"}
        assert (await pushed(socket))["id"] == following["id"]
        await socket.send("command_result", result_of(claimed))
        assert (await socket.expect("error"))["payload"]["code"] == "COMMAND_CANCELED"


async def test_a_cancel_reaches_a_socket_at_another_instance(line: Line, second: RunningGateway) -> None:
    async with device_socket(line.at(second), "?prefetch=2") as socket:
        commands = [await line.submit() for _ in range(2)]
        for _ in commands:
            await pushed(socket)
        await cancel(line, commands[0], reason="first")
        await cancel(line, commands[1], reason="second", force=True)
        assert [(await canceled(socket))["reason"] for _ in commands] == ["first", "second"]


async def test_a_command_that_was_claimed_over_rest_is_canceled_over_the_socket(line: Line) -> None:
    async with device_socket(line.device, "?prefetch=0") as socket:
        soft, forced = await line.claimed(), await line.claimed()
        await cancel(line, soft, reason="soft")
        assert await canceled(socket) == {"id": soft["id"], "reason": "soft"}
        await cancel(line, forced, reason="forced", force=True)
        assert await canceled(socket) == {"id": forced["id"], "reason": "forced"}


async def test_a_command_that_nobody_has_is_canceled_in_silence(line: Line) -> None:
    async with device_socket(line.device) as socket:
        await line.submit()
        claimed = await pushed(socket)
        waiting = await line.submit()
        await cancel(line, waiting, reason="never mind")
        assert await socket.silent(_QUIET)
        # It takes no room either: the next one comes.
        following = await line.submit()
        await socket.ask("command_result", result_of(claimed), answer="ack")
        assert (await pushed(socket))["id"] == following["id"]


async def test_the_end_of_a_session_cancels_what_the_device_has(line: Line, second: RunningGateway) -> None:
    async with device_socket(line.at(second)) as socket:
        command = await line.submit()
        await pushed(socket)
        expect(await line.world.owner.post(f"/api/v1/customer/sessions/{line.session_id}/close", {}), 200)
        assert (await canceled(socket))["id"] == command["id"]


async def test_a_cancel_that_came_between_two_sockets_is_told_to_the_second(line: Line) -> None:
    async with device_socket(line.device, "?prefetch=2") as socket:
        commands = [await line.submit() for _ in range(2)]
        for _ in commands:
            await pushed(socket)
        # Heard of, so that they stay the device's.
        await socket.ask("ping", answer="pong")
    await cancel(line, commands[0], reason="while it was away")
    async with device_socket(line.device, "?prefetch=2") as socket:
        assert await canceled(socket) == {"id": commands[0]["id"], "reason": "while it was away"}
        assert await socket.silent(_QUIET)


async def test_a_cancel_whose_hint_was_lost_is_told_once_the_subscriber_is_back(line: Line, valkey: Redis) -> None:
    async with device_socket(line.device, "?prefetch=2") as socket:
        soft, forced = await line.submit(), await line.submit()
        for _ in range(2):
            await pushed(socket)
        await socket.ask("ping", answer="pong")
        async with unheard(valkey, 1):
            await cancel(line, soft, reason="soft")
            await cancel(line, forced, reason="forced", force=True)
        told = {(found["id"], found["reason"]) for found in [await canceled(socket), await canceled(socket)]}
        assert told == {(soft["id"], "soft"), (forced["id"], "forced")}


async def test_a_cancel_that_nobody_answers_ends_with_the_lease_and_is_not_pushed_again(line: Line) -> None:
    async with device_socket(line.device, "?visibilityTimeout=1000") as socket:
        command = await line.submit()
        await pushed(socket)
        await cancel(line, command)
        await canceled(socket)
        await comes_to(line.world, {**command, "sessionId": line.session_id}, "canceled")
        following = await line.submit()
        assert (await pushed(socket))["id"] == following["id"]
        # It has been told once.
        assert await socket.silent(_QUIET)
        assert socket.earlier == []


async def test_a_device_that_hands_back_what_it_is_to_stop_is_not_told_again(line: Line) -> None:
    async with device_socket(line.device) as socket:
        command = await line.submit()
        claimed = await pushed(socket)
        await cancel(line, command)
        await canceled(socket)
        body = {"commandId": claimed["id"], "claimToken": claimed["claimToken"]}
        assert await socket.ask("release", body, answer="ack") == {"success": True}
        await comes_to(line.world, {**command, "sessionId": line.session_id}, "canceled")
        # Whatever was said of the first one was said before.
        following = await line.submit()
        assert (await pushed(socket))["id"] == following["id"]
        assert socket.earlier == []


async def test_a_cancel_that_is_forced_after_a_plain_one_is_told_too(line: Line) -> None:
    async with device_socket(line.device) as socket:
        command = await line.submit()
        await pushed(socket)
        for force in (False, True):
            await cancel(line, command, force=force)
            assert (await canceled(socket))["id"] == command["id"]
