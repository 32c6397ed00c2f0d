"""What happens to a command while it is being pushed, or is pushed already, and comes by another way (section 6)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from aizen_gateway.storage.keys import DeviceKeys
from tests.support.clients import expect
from tests.support.gate import commits, commits_wait
from tests.support.gateway import StartGateway
from tests.support.inside import comes_to
from tests.support.line import Line
from tests.support.proxy import Wire
from tests.support.pushes import pushed, result_of, unheard
from tests.support.raw_socket import raw_device
from tests.support.sockets import device_socket


async def cancel(line: Line, command: dict[str, Any], **fields: Any) -> None:
    expect(await line.world.owner.cancel({**command, "sessionId": line.session_id}, **fields), 200)


@pytest.mark.parametrize("others", [0, 20])
@pytest.mark.parametrize("force", [False, True])
async def test_a_cancel_that_is_heard_before_its_command_is_pushed_follows_it(
    line: Line, start_gateway: StartGateway, database_url: str, force: bool, others: int
) -> None:
    async with Wire.to_server(database_url) as wire, commits_wait(database_url) as gate:
        gateway = await start_gateway(DATABASE_URL=wire.through(database_url))
        async with device_socket(line.at(gateway), "?prefetch=2") as socket:
            known = await line.submit()
            await pushed(socket)
            command = await line.submit(reason="gate")
            await commits(gate)
            wire.block()
            await gate.execute("select pg_advisory_unlock_all()")
            await comes_to(line.world, {**command, "sessionId": line.session_id}, "claimed")
            # More than is kept of what is heard meanwhile.
            for _ in range(others):
                await cancel(line, await line.submit())
            await cancel(line, command, reason="meanwhile", force=force)
            # It is told in this order, so the first has been heard when the second one is.
            await cancel(line, known, reason="known")
            while (await socket.expect("command_canceled"))["payload"]["id"] != known["id"]:
                pass
            wire.unblock()
            claimed = await pushed(socket)
            assert claimed["id"] == command["id"]
            told = (await socket.expect("command_canceled"))["payload"]
            assert told == {"id": command["id"], "reason": "meanwhile"}
            if not force:
                await socket.ask("command_result", result_of(claimed, "canceled"), answer="ack")
            following = await line.submit()
            assert (await pushed(socket))["id"] == following["id"]


@pytest.mark.parametrize("message", ["command_result", "release", "extend"])
async def test_what_is_refused_because_its_command_has_ended_makes_room(
    line: Line, valkey: Redis, message: str
) -> None:
    async with device_socket(line.device) as socket:
        command, following = await line.submit(), await line.submit()
        claimed = await pushed(socket)
        async with unheard(valkey, 1):
            await cancel(line, command, force=True)
            body = {"commandId": claimed["id"], "claimToken": claimed["claimToken"]}
            await socket.send(message, result_of(claimed) if message == "command_result" else body)
            assert (await socket.expect("error"))["payload"]["code"] == "COMMAND_CANCELED"
            assert (await pushed(socket))["id"] == following["id"]


async def test_a_pushed_command_that_was_claimed_anew_over_rest_takes_no_room(line: Line, valkey: Redis) -> None:
    async with device_socket(line.device) as socket:
        command = await line.submit()
        first = await pushed(socket)
        # So that the socket does not claim it first.
        async with unheard(valkey, 1):
            expect(await line.device.release(first), 200)
            (again,) = await line.device.claim()
            assert again["id"] == command["id"]
        following = await line.submit()
        assert (await pushed(socket))["id"] == following["id"]
        assert expect(await line.device.report(again), 200)["status"] == "succeeded"


async def test_a_socket_does_not_wake_itself_while_postgresql_refuses_connections(
    line: Line, start_gateway: StartGateway, database_url: str, valkey: Redis
) -> None:
    async with Wire.to_server(database_url) as wire, valkey.pubsub() as hints:
        gateway = await start_gateway(DATABASE_URL=wire.through(database_url))
        async with device_socket(line.at(gateway)) as socket:
            await hints.subscribe(DeviceKeys.of(line.device.device_id).channel)
            wire.refuse()
            await line.submit()
            given_back = 0
            async with asyncio.timeout(10):
                while not given_back:
                    hint = await hints.get_message(ignore_subscribe_messages=True, timeout=1.0)
                    given_back += hint is not None and hint["data"] == "wake"
            # Each look that fails gives back what it leased: some in this time, and not some hundreds.
            await asyncio.sleep(2.0)
            while (hint := await hints.get_message(ignore_subscribe_messages=True, timeout=0.0)) is not None:
                given_back += hint["data"] == "wake"
            assert given_back < 30
            wire.accept()
            await pushed(socket)


async def test_what_nobody_can_have_taken_is_given_back_though_redis_is_slow(
    line: Line, start_gateway: StartGateway, redis_url: str
) -> None:
    async with Wire.to_server(redis_url) as wire:
        gateway = await start_gateway(REDIS_URL=wire.through(redis_url))
        command = await line.submit()
        async with raw_device(line.at(gateway)) as socket:
            assert (await socket.message())["type"] == "connected"
            assert (await socket.message())["payload"]["id"] == command["id"]
            # Of the contract's five seconds, to the end of the socket and not to that of Redis's silence.
            await asyncio.sleep(3.5)
            wire.block()
        await wire.held_up()
        await asyncio.sleep(2.5)
        wire.unblock()
        await comes_to(line.world, {**command, "sessionId": line.session_id}, "queued")
