"""What else a portal may send, and what else may happen to it (section 6)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from aizen_gateway.api.keys import SERVICES
from aizen_gateway.api.sockets.conversation import Conversation
from aizen_gateway.api.sockets.messages import Message
from aizen_gateway.api.sockets.wire import WebSocket
from aizen_gateway.domain.values import Role
from aizen_gateway.realtime.connection import ConnectionLimits
from aizen_gateway.services.operators import Operators
from tests.support.clients import API, CustomerClient, World, expect, token_for
from tests.support.gateway import RunningGateway, StartWorld
from tests.support.line import Line
from tests.support.pipe import Pipe, running
from tests.support.portal import events, raw_portal, subscribe
from tests.support.pushes import StartLimited
from tests.support.raw_socket import Opcode, frame_of, text_of
from tests.support.sockets import PATIENCE, SocketClient, portal_socket
from tests.support.waiting import eventually


async def member(world: World, role: Role = Role.ADMIN) -> CustomerClient:
    """Another person of the customer."""
    user = str(uuid4())
    await Operators(world.database).add_member(UUID(world.customer_id), UUID(user), role)
    return CustomerClient(world.http, world.url, {"Authorization": f"Bearer {token_for(user)}"}, user_id=user)


async def still_works(socket: SocketClient) -> None:
    assert (await socket.ask("join_rooms", answer="rooms_joined"))["rooms"] == ["customer"]


async def test_malformed_json_is_answered_and_the_third_time_closed_1007(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        for count, text in enumerate(["{", "[]", '"x"'], 1):
            await socket.ws.send_str(text)
            error = await socket.receive()
            assert (error["type"], error["payload"]["code"]) == ("error", "INVALID_REQUEST")
            if count < 3:
                await still_works(socket)
        assert await socket.closed() == 1007


async def test_what_rest_would_refuse_as_json_is_malformed_here_too(world: World) -> None:
    for text in ('{"type": "ping", "type": "ping"}', '{"type": NaN}', '{"type": "ping", "payload": 1e999}', "\ufeff{}"):
        async with portal_socket(world.owner) as socket:
            await socket.ws.send_str(text)
            assert (await socket.receive())["payload"]["code"] == "INVALID_REQUEST"


async def test_a_binary_frame_closes_1003(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        await socket.ws.send_bytes(b'{"type": "ping"}')
        assert await socket.closed() == 1003


async def test_256_kib_are_taken_and_more_closes_1009(world: World) -> None:
    room = len(json.dumps({"type": "ping", "payload": {"x": ""}}))
    async with portal_socket(world.owner) as socket:
        await socket.send("ping", {"x": "x" * (256 * 1024 - room)})
        assert (await socket.receive())["type"] == "pong"
        await socket.send("ping", {"x": "x" * (256 * 1024 - room + 1)})
        assert await socket.closed() == 1009


async def test_text_that_is_not_utf_8_closes_1007(world: World) -> None:
    async with raw_portal(world.url, world.owner.headers) as socket:
        await socket.send(frame_of(Opcode.TEXT, b'{"type": "\xff"}'))
        assert await socket.closed() == 1007


async def test_too_many_messages_close_4429(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_SOCKET="20")
    async with portal_socket(world.owner) as socket, portal_socket(world.owner) as other:
        for _ in range(20):
            await socket.ask("ping", answer="pong")
        await socket.send("ping")
        assert await socket.closed() == 4429
        # The limit is a socket's own.
        await still_works(other)


async def test_messages_count_as_calls_of_the_user(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="5")
    async with portal_socket(world.owner) as socket:
        for _ in range(4):
            await still_works(socket)
        error = await socket.ask("join_rooms", answer="error")
        assert error["code"] == "RATE_LIMITED"
        assert error["details"]["retryAfter"] > 0
        assert (await world.owner.get(f"{API}/customer/devices")).status == 429
        await socket.ask("ping", answer="pong")


async def test_a_ping_is_answered_with_its_request_id(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        await socket.send("ping", request_id="mine")
        assert await socket.receive() == {"type": "pong", "requestId": "mine", "payload": {}}
        await socket.ws.send_str('{"type": "ping"}')
        assert await socket.receive() == {"type": "pong", "payload": {}}
        await socket.ws.ping(b"low")
        await socket.ask("ping", answer="pong")


async def test_an_unknown_type_is_answered_and_the_socket_goes_on(world: World) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "nonsense"},
        {"type": ""},
        {"type": None},
        {"type": 7},
        {"type": "heartbeat", "payload": {"status": "online"}},
        {"type": "connected"},
        {"type": "command_queued", "payload": {}},
        {},
    ]
    async with portal_socket(world.owner) as socket:
        for message in messages:
            await socket.ws.send_str(json.dumps({**message, "requestId": "r"}))
            error = await socket.receive()
            assert (error["type"], error["requestId"], error["payload"]["code"]) == ("error", "r", "INVALID_REQUEST")
            assert list(error["payload"]["details"]["fields"]) == ["type"]
        await still_works(socket)


async def test_a_payload_of_the_wrong_type_is_refused_and_an_unknown_field_too(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        payloads: list[Any] = [{"odd": 1}, [], "x", 7]
        for payload in payloads:
            await socket.ws.send_str(json.dumps({"type": "join_rooms", "payload": payload, "requestId": "r"}))
            assert (await socket.receive())["payload"]["code"] == "INVALID_REQUEST", payload
        for nothing in ({"type": "join_rooms"}, {"type": "join_rooms", "payload": None}):
            await socket.ws.send_str(json.dumps(nothing))
            assert (await socket.receive())["type"] == "rooms_joined"


async def test_a_request_id_that_is_none_is_not_echoed(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        for odd in (7, None, ["r"], "x" * 129):
            await socket.ws.send_str(json.dumps({"type": "join_rooms", "requestId": odd}))
            assert "requestId" not in await socket.receive()


async def test_messages_are_answered_in_their_order(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        for number in range(20):
            order = {"sessionId": line.session_id, "type": "ping", "parameters": {"n": number}}
            await socket.send("send_command" if number % 2 else "join_rooms", order if number % 2 else {}, str(number))
        answers: list[int] = []
        while len(answers) < 20:
            frame = await socket.receive()
            if frame["type"] in ("command_queued", "rooms_joined"):
                answers.append(int(frame["requestId"]))
        assert answers == list(range(20))


async def test_a_removed_member_is_closed_4403_with_its_next_message(world: World) -> None:
    person = await member(world)
    async with portal_socket(person) as socket:
        await still_works(socket)
        await Operators(world.database).remove_member(UUID(world.customer_id), UUID(person.user_id))
        error = await socket.ask("join_rooms", answer="error")
        assert error["code"] == "NO_CUSTOMER"
        assert await socket.closed() == 4403


async def test_a_removed_member_that_says_nothing_is_closed_4403_too(gateway: RunningGateway, world: World) -> None:
    sockets = gateway.app[SERVICES].portal_sockets
    assert sockets.times.look <= 60
    sockets.times = replace(sockets.times, look=0.1)
    person = await member(world)
    async with (
        portal_socket(person) as socket,
        portal_socket(world.owner) as other,
        portal_socket(world.service) as bot,
    ):
        await subscribe(socket)
        await asyncio.sleep(0.3)
        await Operators(world.database).remove_member(UUID(world.customer_id), UUID(person.user_id))
        assert await socket.closed() == 4403
        await still_works(other)
        await still_works(bot)


async def test_a_member_that_is_another_customers_by_now_is_closed_4403(world: World) -> None:
    """Its socket is of the customer it opened it for, and its wishes would be of the other."""
    elsewhere = await Line.open(await world.another())
    person = await member(world)
    operators = Operators(world.database)
    async with portal_socket(person) as socket:
        await subscribe(socket)
        await operators.remove_member(UUID(world.customer_id), UUID(person.user_id))
        await operators.add_member(UUID(elsewhere.world.customer_id), UUID(person.user_id), Role.OWNER)
        order = {"sessionId": elsewhere.session_id, "type": "ping"}
        assert (await socket.ask("send_command", order, answer="error"))["code"] == "NO_CUSTOMER"
        assert await socket.closed() == 4403
    assert (await elsewhere.world.owner.session(elsewhere.session_id))["commands"] == []
    async with portal_socket(person) as socket:
        assert (await socket.ask("send_command", order, answer="command_queued"))["command"]["status"] == "queued"


async def test_a_role_that_was_taken_away_counts_with_the_next_message(line: Line) -> None:
    world = line.world
    person = await member(world)
    async with portal_socket(person) as socket:
        order = {"sessionId": line.session_id, "type": "ping"}
        await socket.ask("send_command", order, answer="command_queued")
        await Operators(world.database).add_member(UUID(world.customer_id), UUID(person.user_id), Role.VIEWER)
        assert (await socket.ask("send_command", order, answer="error"))["code"] == "FORBIDDEN"
        await subscribe(socket, f"session:{line.session_id}")


async def test_a_portal_that_went_away_without_a_word_is_found_by_ping(
    start_limited: StartLimited, world: World
) -> None:
    gateway = await start_limited(ConnectionLimits(ping_every=0.2, pong_within=0.2))
    owner = replace(world.owner, url=gateway.url)
    async with raw_portal(gateway.url, owner.headers) as silent, portal_socket(owner) as alive:
        # A client answers pings while it reads; whoever does not answer is gone, without a close frame.
        reading = asyncio.create_task(alive.receive())
        assert await silent.closed() is None
        await alive.send("join_rooms")
        assert (await reading)["type"] == "rooms_joined"


async def test_nothing_is_left_of_portals_that_leave_at_any_moment(world: World, gateway: RunningGateway) -> None:
    portals, live = gateway.app[SERVICES].portal_sockets.open_sockets, gateway.app[SERVICES].live
    tasks = len(asyncio.all_tasks())

    async def hurry(number: int) -> None:
        async with raw_portal(world.url, world.owner.headers if number % 2 else None) as socket:
            first = text_of("auth", {"token": token_for(world.owner.user_id)})
            await socket.send(first, text_of("join_rooms"), text_of("nonsense"))
            if number % 3 == 0:
                await socket.send(frame_of(Opcode.CLOSE, b"\x03\xe8"))
            for _ in range(number % 17):
                await asyncio.sleep(0.0005)

    for start in range(0, 60, 20):
        await asyncio.gather(*(hurry(number) for number in range(start, start + 20)))

    async def left() -> tuple[int, int, int]:
        return len(portals), live.count, max(0, len(asyncio.all_tasks()) - tasks)

    await eventually(left, lambda found: found == (0, 0, 0))


async def test_a_socket_that_has_ended_while_it_was_opened_is_not_read() -> None:
    async def answer(_message: Message) -> None: ...

    async with running(Pipe()) as connection:
        connection.end(1000, "")
        async with asyncio.timeout(PATIENCE):
            await Conversation(WebSocket(()), connection, 0).hold(answer)


async def test_portals_are_counted_among_the_connections(world: World) -> None:
    async with portal_socket(world.owner), portal_socket(world.viewer):
        system = expect(await world.owner.get(f"{API}/customer/system"), 200)
        assert system["connections"]["customers"] == 2


async def test_a_client_that_closes_is_answered_with_its_own_code(world: World) -> None:
    async with raw_portal(world.url, world.owner.headers) as socket:
        await socket.send(frame_of(Opcode.CLOSE, b"\x03\xe8bye"))
        assert await socket.closed() == 1000
        await socket.gone()


async def test_events_go_on_while_a_message_is_worked_on(world: World) -> None:
    """A wish that waits for the database keeps nobody from hearing."""
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    async with portal_socket(world.owner) as socket, world.database.unit() as connection:
        await subscribe(socket)
        await connection.execute("select 1 from aizen.sessions where id = $1 for update", UUID(session["id"]))
        await socket.send("send_command", {"sessionId": session["id"], "type": "ping"}, "waits")
        await device.heartbeat()
        (event,) = await events(socket, 1)
        assert event["type"] == "device_status"
        await socket.send("ping", request_id="p")
        assert (await socket.expect("pong"))["requestId"] == "p"
        assert not [frame for frame in socket.earlier if frame["type"] == "command_queued"]
        await connection.execute("rollback")
        await connection.execute("begin")
        assert (await socket.expect("command_queued"))["requestId"] == "waits"
