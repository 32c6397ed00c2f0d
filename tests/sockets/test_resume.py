"""Nothing is missed on a flaky line: resumed subscriptions, and what Redis may suffer meanwhile (section 6)."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest
from aiohttp import ClientSession, WSServerHandshakeError
from redis.asyncio import Redis

from aizen_gateway.storage import events as events_module
from aizen_gateway.storage import keys
from aizen_gateway.storage.events import EventStream
from aizen_gateway.storage.postgres import Database
from tests.support.clients import CustomerClient, World
from tests.support.gateway import StartGateway
from tests.support.line import Line
from tests.support.outages import crash, hung
from tests.support.portal import Newsroom, events, fall_off, numbers, pouring, subscribe
from tests.support.servers import FreshValkey
from tests.support.sockets import portal_socket


@pytest.fixture
def news(world: World, stream: EventStream) -> Newsroom:
    """Events of the world's customer."""
    return Newsroom(stream, UUID(world.customer_id))


async def test_while_there_is_no_event_there_is_no_last_one(world: World, news: Newsroom) -> None:
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket)
        assert answer == {"room": "customer", "lastEventId": None, "replayed": 0, "complete": True}
        last = await news.tell()
        assert (await events(socket, 1))[0]["eventId"] == last
    async with portal_socket(world.owner) as socket:
        assert (await subscribe(socket))["lastEventId"] == last


async def test_a_resumed_subscription_is_answered_then_replayed_then_live(world: World, news: Newsroom) -> None:
    seen = await news.tell(3)
    last = await news.tell(5)
    async with portal_socket(world.owner) as socket:
        await socket.send("subscribe", {"room": "customer", "lastEventId": seen}, "resume")
        answer = await socket.receive()
        assert (answer["type"], answer["requestId"]) == ("subscribed", "resume")
        assert answer["payload"] == {"room": "customer", "lastEventId": last, "replayed": 5, "complete": True}
        assert numbers([await socket.receive() for _ in range(5)]) == [3, 4, 5, 6, 7]
        await news.tell(2)
        assert numbers([await socket.receive() for _ in range(2)]) == [8, 9]


async def test_the_last_id_itself_has_nothing_after_it(world: World, news: Newsroom) -> None:
    last = await news.tell(3)
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=last)
        assert (answer["lastEventId"], answer["replayed"], answer["complete"]) == (last, 0, True)
        await news.tell()
        assert numbers(await events(socket, 1)) == [3]


async def test_an_id_that_is_not_known_is_not_complete(world: World, news: Newsroom) -> None:
    for unknown in ("", "nonsense", "0-0", "1-1", "9999999999999-0", "9" * 19 + "-0", "9" * 40 + "-0"):
        last = await news.tell(3)
        async with portal_socket(world.owner) as socket:
            answer = await subscribe(socket, last_event_id=unknown)
            assert answer["complete"] is False
            assert answer["lastEventId"] == last
            await events(socket, answer["replayed"])
            # And from here on it goes on as ever.
            await news.tell(2)
            assert numbers(await events(socket, 2)) == [number for _, number in news.told[-2:]]


async def test_an_id_of_another_customer_is_not_known_and_brings_nothing_of_it(world: World, news: Newsroom) -> None:
    theirs = Newsroom(news.stream, UUID((await world.another()).customer_id))
    first = await theirs.tell()
    # Ids tell the millisecond: they are not to be the same by chance.
    await asyncio.sleep(0.002)
    await news.tell(2)
    await theirs.tell(3)
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=first)
        assert answer["complete"] is False
        assert {event["eventId"] for event in await events(socket, answer["replayed"])} <= {i for i, _ in news.told}
        assert await socket.silent(0.1)


async def test_what_a_whole_fleet_told_in_ten_minutes_arrives_completely(world: World, news: Newsroom) -> None:
    """Far more than the outbox holds: a client that reads gets all of it."""
    await news.tell(2000, filling="x" * 700)
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=news.told[0][0])
        assert (answer["replayed"], answer["complete"]) == (1999, True)
        assert numbers(await events(socket, 1999)) == list(range(1, 2000))


@pytest.mark.parametrize(("bound", "value"), [("_kept_ms", -1), ("_MOST_EVENTS", 1000)])
async def test_a_thousand_events_are_kept_however_old_or_many_they_are(
    world: World, news: Newsroom, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(events_module if bound.isupper() else news.stream, bound, value)
    await news.tell(1300)
    async with portal_socket(world.owner) as socket:
        kept, _ = news.told[-1001]
        answer = await subscribe(socket, last_event_id=kept)
        assert (answer["replayed"], answer["complete"]) == (1000, True)
        assert numbers(await events(socket, 1000)) == list(range(300, 1300))
    async with portal_socket(world.owner) as socket:
        dropped, _ = news.told[0]
        answer = await subscribe(socket, last_event_id=dropped)
        assert answer["complete"] is False
        assert 1000 <= answer["replayed"] <= 1200
        assert numbers(await events(socket, answer["replayed"])) == list(range(1300 - answer["replayed"], 1300))


async def test_large_events_leave_room_for_a_thousand(news: Newsroom, valkey: Redis) -> None:
    stream_key = keys.customer_stream(news.customer_id)
    await news.tell(1300)
    assert await valkey.xlen(stream_key) == 1300
    await news.tell(filling="x" * 20_000)
    assert 1000 <= await valkey.xlen(stream_key) <= 1200


async def test_large_events_arrive_completely(world: World, news: Newsroom) -> None:
    seen = await news.tell()
    await news.tell(12, filling="x" * 250_000)
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=seen)
        assert (answer["replayed"], answer["complete"]) == (12, True)
        assert numbers(await events(socket, 12)) == list(range(1, 13))


async def test_after_a_long_silence_the_last_id_is_known_still(world: World, news: Newsroom, valkey: Redis) -> None:
    """The events themselves end before the memory of the last one."""
    before = await news.tell(3)
    last = await news.tell()
    stream_key, tail_key = keys.customer_stream(news.customer_id), keys.customer_tail(news.customer_id)
    assert 600_000 < await valkey.pttl(stream_key) < await valkey.pttl(tail_key)
    await valkey.delete(stream_key)
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=last)
        assert (answer["lastEventId"], answer["replayed"], answer["complete"]) == (last, 0, True)
        await news.tell()
        assert numbers(await events(socket, 1)) == [4]
    async with portal_socket(world.owner) as socket:
        assert (await subscribe(socket, last_event_id=before))["complete"] is False


async def test_a_room_is_replayed_without_what_is_not_of_it(line: Line) -> None:
    world = line.world
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        await line.submit()
        (first,) = await events(socket, 1)
    other = await Line.open(world)
    mine = await line.submit()
    await other.submit()
    await line.device.heartbeat()
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, f"session:{line.session_id}", first["eventId"])
        assert (answer["replayed"], answer["complete"]) == (1, True)
        (event,) = await events(socket, 1)
        assert event["payload"]["command"]["id"] == mine["id"]
        answer = await subscribe(socket, f"device:{line.device.device_id}", first["eventId"])
        assert answer["replayed"] == 1
        assert (await events(socket, 1))[0]["type"] == "device_status"
        answer = await subscribe(socket, f"device:{other.device.device_id}", first["eventId"])
        # Provisioned, registered, its session, its command.
        assert answer["replayed"] == 4
        assert len(await events(socket, 4)) == 4
        answer = await subscribe(socket, "customer", first["eventId"])
        assert answer["replayed"] == 0
        assert await socket.silent(0.1)


async def test_rooms_that_are_resumed_one_by_one_repeat_nothing(world: World, news: Newsroom) -> None:
    names = [f"d-{number}" for number in range(3)]
    for name in names:
        await world.owner.provision(name)
    seen = await news.tell()
    for _ in range(5):
        for name in names:
            await news.tell(1, f"device:{name}")
    for order in (["customer", *names], [*names, "customer"], [names[0], "customer", *names[1:]]):
        async with portal_socket(world.owner) as socket:
            heard: list[int] = []
            for name in order:
                room = name if name == "customer" else f"device:{name}"
                answer = await subscribe(socket, room, seen)
                heard += numbers(await events(socket, answer["replayed"]))
            assert sorted(heard) == list(range(1, 16))
            assert await socket.silent(0.05)


class Flapping:
    """A portal on a flaky line: it comes and goes, each time with the last id that it has seen."""

    def __init__(self, customer: CustomerClient, urls: list[str], last: str, seed: int) -> None:
        self._customer = customer
        self._urls = urls
        self._random = random.Random(seed)
        self.last = last
        self.heard: list[int] = []

    async def once(self) -> None:
        """Connect, resume, hear some events, and fall off the line."""
        async with portal_socket(self._customer, url=self._random.choice(self._urls)) as socket:
            answer = await subscribe(socket, last_event_id=self.last)
            assert answer["complete"]
            for _ in range(self._random.randrange(60)):
                (event,) = await events(socket, 1)
                self.last = event["eventId"]
                self.heard += numbers([event])
            if self._random.random() < 0.5:
                fall_off(socket)


async def test_portals_that_come_and_go_while_events_pour_in_miss_nothing(
    world: World, start_gateway: StartGateway, news: Newsroom, redis_url: str
) -> None:
    """Two instances publish in tight loops."""
    urls = [world.url, (await start_gateway()).url]
    first = await news.tell()
    portals = [Flapping(world.owner, urls, first, seed) for seed in range(4)]
    async with pouring(world.customer_id, redis_url, redis_url) as pour:
        for _ in range(10):
            await asyncio.gather(*(portal.once() for portal in portals))
        count = await pour.stop()
    for portal in portals:
        async with portal_socket(world.owner) as socket:
            answer = await subscribe(socket, last_event_id=portal.last)
            portal.heard += numbers(await events(socket, answer["replayed"]))
    told = portals[-1].heard
    # Two loops number their events independently of the order in which Redis takes them.
    assert sorted(told) == list(range(count))
    assert [portal.heard for portal in portals] == [told] * 4


async def test_sockets_notice_nothing_when_the_instance_loses_its_connections_to_redis(
    world: World, redis_url: str, valkey: Redis
) -> None:
    async with portal_socket(world.owner) as socket, pouring(world.customer_id, redis_url) as pour:
        await subscribe(socket)
        (first,) = numbers(await events(socket, 1))
        heard = [first]
        for kinds in (["pubsub"], ["normal", "pubsub"], ["pubsub", "normal"], ["pubsub"]):
            for kind in kinds:
                await valkey.client_kill_filter(_type=kind, skipme=True)
            heard += numbers(await events(socket, 150))
        count = await pour.stop()
        heard += numbers(await events(socket, count - first - len(heard)))
        assert heard == list(range(first, count))
        assert await socket.silent(0.1)


async def test_what_was_missed_on_a_cut_connection_is_told_though_nothing_follows(
    world: World, news: Newsroom, valkey: Redis
) -> None:
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        for number in range(3):
            await valkey.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
            await news.tell()
            assert numbers(await events(socket, 1)) == [number]


async def test_a_valkey_that_stands_still_for_a_while_costs_no_event(
    start_gateway: StartGateway, http: ClientSession, database: Database, fresh_valkey: FreshValkey
) -> None:
    valkey = await fresh_valkey()
    world = await World.create((await start_gateway(REDIS_URL=valkey.url)).url, http, database)
    async with portal_socket(world.owner) as socket, pouring(world.customer_id, valkey.url) as pour:
        await subscribe(socket)
        before = await events(socket, 20)
        (first, *_) = numbers(before)
        with hung(valkey):
            # Longer than a call to Redis may take.
            await asyncio.sleep(2.5)
            error = await socket.ask("subscribe", {"room": "customer"}, answer="error")
            assert error["code"] == "UNAVAILABLE"
        after = await events(socket, 50)
        assert (await subscribe(socket))["complete"]
        count = await pour.stop()
        rest = await events(socket, count - first - 70)
        assert numbers([*before, *after, *rest]) == list(range(first, count))
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=before[-1]["eventId"])
        assert (answer["replayed"], answer["complete"]) == (count - first - 20, True)


async def test_after_a_valkey_that_lost_everything_portals_are_sent_to_resume_and_told_to_reload(
    start_gateway: StartGateway, http: ClientSession, database: Database, fresh_valkey: FreshValkey
) -> None:
    """Nobody can tell what was lost: a socket that heard events is closed 1013, and its last id is not known."""
    valkey = await fresh_valkey()
    world = await World.create((await start_gateway(REDIS_URL=valkey.url)).url, http, database)
    quiet = await world.another()
    async with portal_socket(world.owner) as socket, portal_socket(quiet.owner) as spared:
        await subscribe(spared)
        await subscribe(socket)
        await world.owner.provision("device-before")
        (seen,) = await events(socket, 1)
        await crash(valkey)
        await valkey.restart()
        assert await socket.closed() == 1013
        # One that never heard anything has lost nothing.
        await quiet.owner.provision("device-of-the-quiet")
        assert (await events(spared, 1))[0]["payload"]["deviceId"] == "device-of-the-quiet"
    async with portal_socket(world.owner) as socket:
        answer = await subscribe(socket, last_event_id=seen["eventId"])
        assert (answer["replayed"], answer["complete"]) == (0, False)
        await world.owner.provision("device-after")
        (event,) = await events(socket, 1)
        assert event["payload"]["deviceId"] == "device-after"
        assert event["eventId"] > seen["eventId"]


async def test_a_subscription_waits_for_nobody_while_redis_is_away(
    start_gateway: StartGateway, http: ClientSession, database: Database, fresh_valkey: FreshValkey
) -> None:
    valkey = await fresh_valkey()
    world = await World.create((await start_gateway(REDIS_URL=valkey.url)).url, http, database)
    await world.owner.provision("device-before")
    async with portal_socket(world.owner) as socket:
        await subscribe(socket)
        await crash(valkey)
        error = await socket.ask("subscribe", {"room": "device:device-before"}, answer="error")
        assert (error["code"], error["details"]["retryAfter"]) == ("UNAVAILABLE", 2)
        assert await socket.ask("ping", answer="pong") == {}
        # Who comes now is asked to come again.
        with pytest.raises(WSServerHandshakeError) as refused:
            async with portal_socket(world.owner):
                pass
        assert refused.value.status == 503
        await valkey.restart()
