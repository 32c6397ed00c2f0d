"""What was pushed to a socket that ended: given back when it cannot have been taken, else the device's (section 6)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.clients import expect
from tests.support.gateway import RunningGateway
from tests.support.inside import comes_to
from tests.support.line import Line
from tests.support.pushes import finish, pushed
from tests.support.raw_socket import Opcode, RawSocket, frame_of, raw_device, text_of
from tests.support.sockets import device_socket

_QUIET = 0.5


async def deaf_agent(socket: RawSocket, count: int) -> list[str]:
    """Read the greeting and `count` pushed commands without saying a word; their ids."""
    assert (await socket.message())["type"] == "connected"
    return [(await socket.message())["payload"]["id"] for _ in range(count)]


async def test_what_nobody_can_have_taken_is_given_back_at_once_and_uncounted(line: Line) -> None:
    commands = [await line.submit() for _ in range(3)] + [await line.approved()]
    for _ in range(2):
        async with raw_device(line.device, "?prefetch=10") as socket:
            assert await deaf_agent(socket, 4) == [command["id"] for command in commands]
        for command in commands:
            await comes_to(line.world, {**command, "sessionId": line.session_id}, "queued")
    claimed = await line.device.claim(limit=10)
    assert [(found["id"], found["attempt"]) for found in claimed] == [(command["id"], 1) for command in commands]


async def test_it_is_pushed_to_the_newer_socket_at_once(line: Line, second: RunningGateway) -> None:
    commands = [await line.submit() for _ in range(3)]
    async with raw_device(line.device, "?prefetch=3") as socket:
        await deaf_agent(socket, 3)
        async with device_socket(line.at(second), "?prefetch=3") as newer:
            claimed = [await pushed(newer) for _ in commands]
            assert {(found["id"], found["attempt"]) for found in claimed} == {(found["id"], 1) for found in commands}


async def test_a_clean_close_gives_back_as_well(line: Line) -> None:
    command = await line.submit()
    async with raw_device(line.device) as socket:
        await deaf_agent(socket, 1)
        await socket.send(frame_of(Opcode.CLOSE, b"\x03\xe8"))
        await socket.gone()
    assert (await line.device.claim(waitMs=5000))[0]["id"] == command["id"]


async def test_control_frames_are_no_sign_that_it_was_taken(line: Line) -> None:
    command = await line.submit()
    async with raw_device(line.device) as socket:
        await deaf_agent(socket, 1)
        await socket.send(frame_of(Opcode.PONG), frame_of(Opcode.PING))
        assert await socket.receive() == (Opcode.PONG, b"")
    assert (await line.device.claim(waitMs=5000))[0]["id"] == command["id"]


async def test_after_any_text_it_stays_leased_and_can_be_answered_over_rest_or_a_new_socket(line: Line) -> None:
    for text in (text_of("ping"), text_of("heartbeat", {"status": "busy"}), frame_of(Opcode.TEXT, b"no JSON")):
        over_rest, over_socket = await line.submit(), await line.submit()
        async with raw_device(line.device, "?prefetch=2") as socket:
            assert (await socket.message())["type"] == "connected"
            claimed = [(await socket.message())["payload"] for _ in range(2)]
            await socket.send(text)
            await socket.message()
        async with device_socket(line.device, "?prefetch=2") as newer:
            assert await newer.silent(_QUIET)
            assert (await line.seen(over_rest))["status"] == "claimed"
            assert expect(await line.device.report(claimed[0]), 200)["late"] is False
            assert (await finish(newer, claimed[1]))["duplicate"] is False
        assert (await line.seen(over_socket))["status"] == "succeeded"


async def test_what_was_pushed_after_the_last_text_is_given_back_and_what_was_before_is_not(line: Line) -> None:
    taken = await line.submit()
    async with raw_device(line.device, "?prefetch=2") as socket:
        await deaf_agent(socket, 1)
        await socket.send(text_of("ping"))
        assert (await socket.message())["type"] == "pong"
        untaken = await line.submit()
        assert (await socket.message())["payload"]["id"] == untaken["id"]
    (claimed,) = await line.device.claim(waitMs=5000, limit=10)
    assert claimed["id"] == untaken["id"]
    assert (await line.seen(taken))["status"] == "claimed"


async def test_what_was_pushed_five_seconds_ago_stays_leased_and_what_was_later_does_not(line: Line) -> None:
    later = await Line.open(line.world)
    command, given_back = await line.submit(), await later.submit()
    async with raw_device(line.device) as socket:
        await deaf_agent(socket, 1)
        async with raw_device(later.device) as other:
            await deaf_agent(other, 1)
            await asyncio.sleep(3.5)
        # The contract's five seconds, for the first one only.
        await asyncio.sleep(1.55)
    assert (await later.device.claim(waitMs=5000))[0]["id"] == given_back["id"]
    async with device_socket(line.device) as newer:
        assert await newer.silent(_QUIET)
        assert (await line.seen(command))["status"] == "claimed"


async def test_what_was_answered_over_rest_meanwhile_is_not_touched(line: Line) -> None:
    done, released = await line.submit(), await line.submit()
    async with raw_device(line.device, "?prefetch=2") as socket:
        assert (await socket.message())["type"] == "connected"
        first, second = [(await socket.message())["payload"] for _ in range(2)]
        expect(await line.device.report(first), 200)
        expect(await line.device.release(second), 200)
        # Released, it is pushed again; that push nobody has taken either.
        again = (await socket.message())["payload"]
        assert (again["id"], again["attempt"]) == (released["id"], 1)
    (claimed,) = await line.device.claim(waitMs=5000, limit=10)
    assert (claimed["id"], claimed["attempt"]) == (released["id"], 1)
    assert (await line.seen(done))["status"] == "succeeded"


async def test_a_canceled_command_that_nobody_took_is_canceled_at_once(line: Line) -> None:
    command = await line.submit()
    async with raw_device(line.device) as socket:
        await deaf_agent(socket, 1)
        expect(await line.world.owner.cancel({**command, "sessionId": line.session_id}), 200)
        assert (await socket.message())["type"] == "command_canceled"
    await comes_to(line.world, {**command, "sessionId": line.session_id}, "canceled")
    assert await line.device.claim() == []


async def test_what_was_pulled_stays_leased(line: Line) -> None:
    command = await line.submit()
    async with device_socket(line.device, "?prefetch=0") as socket:
        (claimed,) = (await socket.ask("claim", {}, answer="commands"))["commands"]
    assert await line.device.claim(waitMs=300) == []
    assert claimed["id"] == command["id"]
    assert expect(await line.device.report(claimed), 200)["status"] == "succeeded"


async def test_a_device_whose_token_ended_gives_back_too(line: Line) -> None:
    command = await line.submit()
    async with raw_device(line.device) as socket:
        await deaf_agent(socket, 1)
        other = replace(line.device, headers=dict(line.device.headers))
        expect(await other.sign_in(), 200)
        expect(await line.device.post("/api/v1/device/logout", {}), 204)
        assert await socket.closed() == 4401
    (claimed,) = await other.claim(waitMs=5000)
    assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
