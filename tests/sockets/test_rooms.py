"""Rooms: who may join them, what each of them hears, and that nobody hears anything twice (section 6)."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from aizen_gateway.storage.events import EventStream
from tests.support.clients import World
from tests.support.line import Line
from tests.support.portal import Newsroom, events, numbers, subscribe
from tests.support.sockets import SocketClient, portal_socket


async def refused(socket: SocketClient, payload: dict[str, Any], message: str = "subscribe") -> str:
    """The code with which a message is refused."""
    return str((await socket.ask(message, payload, answer="error"))["code"])


async def rooms(socket: SocketClient) -> list[str]:
    """The rooms the socket is in, `customer` among them from now on."""
    return list((await socket.ask("join_rooms", answer="rooms_joined"))["rooms"])


async def test_every_kind_of_room_can_be_joined(line: Line) -> None:
    device_id = line.device.device_id
    async with portal_socket(line.world.viewer) as socket:
        for room in ("customer", f"device:{device_id}", f"session:{line.session_id}"):
            answer = await subscribe(socket, room)
            assert answer["room"] == room
            assert (answer["replayed"], answer["complete"]) == (0, True)


async def test_a_device_room_can_be_named_by_the_device_alone(line: Line) -> None:
    device_id = line.device.device_id
    async with portal_socket(line.world.owner) as socket:
        answer = await socket.ask("subscribe", {"deviceId": device_id}, answer="subscribed")
        assert answer["room"] == f"device:{device_id}"
        answer = await socket.ask("unsubscribe", {"deviceId": device_id}, answer="unsubscribed")
        assert answer == {"room": f"device:{device_id}"}
        assert await rooms(socket) == ["customer"]


async def test_join_rooms_lists_all_that_the_socket_is_in(line: Line) -> None:
    device = f"device:{line.device.device_id}"
    async with portal_socket(line.world.owner) as socket:
        assert await rooms(socket) == ["customer"]
        await subscribe(socket, device)
        await subscribe(socket, f"session:{line.session_id}")
        assert await rooms(socket) == ["customer", device, f"session:{line.session_id}"]
        await socket.ask("unsubscribe", {"room": "customer"}, answer="unsubscribed")
        await socket.ask("unsubscribe", {"room": device}, answer="unsubscribed")
        assert await rooms(socket) == ["customer", f"session:{line.session_id}"]


async def test_a_session_room_is_one_room_however_its_id_is_written(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        answer = await subscribe(socket, f"session:{line.session_id.upper()}")
        assert answer["room"] == f"session:{line.session_id}"
        await socket.ask("unsubscribe", {"room": f"session:{line.session_id.upper()}"}, answer="unsubscribed")
        assert await rooms(socket) == ["customer"]


async def test_rooms_of_other_customers_are_as_if_they_were_not_there(line: Line) -> None:
    other = await line.world.another()
    async with portal_socket(other.owner) as socket:
        for device in (line.device.device_id, "no-such-device", "x", "not a device id"):
            assert await refused(socket, {"room": f"device:{device}"}) == "DEVICE_NOT_FOUND"
            assert await refused(socket, {"deviceId": device}) == "DEVICE_NOT_FOUND"
        compact = UUID(line.session_id).hex
        for session in (line.session_id, str(uuid4()), "nonsense", "", f"{{{line.session_id}}}", compact):
            assert await refused(socket, {"room": f"session:{session}"}) == "SESSION_NOT_FOUND"
        assert await rooms(socket) == ["customer"]
        await line.submit()
        assert await socket.silent(0.3)


async def test_a_room_that_is_none_is_refused(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        device = f"device:{line.device.device_id}"
        for payload in (
            {},
            {"room": "everything"},
            {"room": ""},
            {"room": None},
            {"room": 7},
            {"room": "customer:" + line.world.customer_id},
            {"room": device, "deviceId": line.device.device_id},
            {"room": "device:" + "x" * 200},
            {"room": device, "odd": 1},
            {"room": device, "lastEventId": 7},
        ):
            assert await refused(socket, payload) == "INVALID_REQUEST", payload
        for payload in ({}, {"room": "everything"}, {"room": device, "odd": 1}):
            assert await refused(socket, payload, "unsubscribe") == "INVALID_REQUEST", payload


async def test_leaving_a_room_that_was_not_joined_is_no_failure(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        room = f"device:{line.device.device_id}"
        assert await socket.ask("unsubscribe", {"room": room}, answer="unsubscribed") == {"room": room}


async def test_the_last_event_is_of_no_use_to_one_who_leaves_and_no_failure(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        for last in ("1-1", "unknown", None):
            await subscribe(socket)
            left = await socket.ask("unsubscribe", {"room": "customer", "lastEventId": last}, answer="unsubscribed")
            assert left == {"room": "customer"}


async def test_a_socket_hears_nothing_before_it_joins_and_nothing_after_it_left(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        await line.submit()
        assert await socket.silent(0.2)
        await subscribe(socket)
        command = await line.submit()
        (event,) = await events(socket, 1)
        assert event["payload"]["command"]["id"] == command["id"]
        await socket.ask("unsubscribe", {"room": "customer"}, answer="unsubscribed")
        await line.submit()
        assert await socket.silent(0.2)


async def test_what_was_answered_before_a_subscription_is_not_heard_after_it(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        for _ in range(20):
            before = await line.submit()
            await subscribe(socket)
            await line.world.owner.cancel(before)
            (event,) = await events(socket, 1)
            assert event["payload"]["command"]["status"] == "canceled"
            await socket.ask("unsubscribe", {"room": "customer"}, answer="unsubscribed")


async def test_each_room_hears_what_belongs_to_it(world: World) -> None:
    one, two = await world.device(), await world.device()
    async with (
        portal_socket(world.owner) as everything,
        portal_socket(world.owner) as of_device,
        portal_socket(world.owner) as of_session,
    ):
        await subscribe(everything)
        await subscribe(of_device, f"device:{one.device_id}")
        session = await world.owner.open_session(one.device_id)
        other_session = await world.owner.open_session(two.device_id)
        await subscribe(of_session, f"session:{session['id']}")
        command = await world.owner.submit(session["id"])
        await world.owner.submit(other_session["id"])
        await one.heartbeat()
        await two.heartbeat()
        heard = await events(everything, 6)
        own, status = f"session:{session['id']}", f"device:{one.device_id}"
        other = f"session:{other_session['id']}"
        assert [frame["room"] for frame in heard] == [own, other, own, other, status, f"device:{two.device_id}"]
        of_one = [heard[0], heard[2], heard[4]]
        assert await events(of_device, 3) == of_one
        assert await events(of_session, 1) == [heard[2]]
        assert heard[2]["payload"]["command"]["id"] == command["id"]
        assert await of_device.silent(0.2)
        assert await of_session.silent(0.1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_a_socket_in_several_rooms_gets_an_event_once_with_its_most_specific_room(
    line: Line, order: tuple[int, ...]
) -> None:
    names = ("customer", f"device:{line.device.device_id}", f"session:{line.session_id}")
    async with portal_socket(line.world.owner) as socket:
        for number in order:
            await subscribe(socket, names[number])
        await line.submit()
        await line.device.heartbeat()
        first, second = await events(socket, 2)
        assert (first["type"], first["room"]) == ("command_update", names[2])
        assert (second["type"], second["room"]) == ("device_status", names[1])
        assert await socket.silent(0.2)


async def test_a_room_joined_twice_brings_nothing_twice_and_loses_nothing(world: World, stream: EventStream) -> None:
    news = Newsroom(stream, UUID(world.customer_id))
    async with portal_socket(world.owner) as socket:
        for _ in range(10):
            await subscribe(socket)
            await news.tell(3)
            await socket.ask("join_rooms", answer="rooms_joined")
            await news.tell(2)
        assert numbers(await events(socket, 50)) == list(range(50))
        assert await socket.silent(0.1)


async def test_a_socket_can_be_in_200_rooms_and_not_in_more(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        held = [await line.world.owner.provision(f"many-{number}") for number in range(200)]
        for device in held:
            await subscribe(socket, f"device:{device['id']}")
        assert await refused(socket, {"room": "customer"}) == "INVALID_REQUEST"
        # One that is joined already may be joined again.
        await subscribe(socket, f"device:{held[0]['id']}")
        await socket.ask("unsubscribe", {"deviceId": held[0]["id"]}, answer="unsubscribed")
        await subscribe(socket)
