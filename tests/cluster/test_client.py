"""The client of a cluster: how calls find their node, and what they notice of slots that move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from redis.exceptions import ResponseError

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.cluster import Cluster, client_of, free_port
from tests.support.outages import crash, hung
from tests.support.waiting import eventually


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    opened = RedisStore.connect(RedisOptions(redis_url, timeout=1.0))
    yield opened
    await opened.close()


async def count(store: RedisStore, key: str) -> int:
    return int(await store.call("INCR", key))


async def test_calls_go_to_the_nodes_of_their_keys(store: RedisStore, cluster: Cluster) -> None:
    for number in range(30):
        await store.call("SET", f"{{{number}}}:key", number)
    for node in cluster.nodes:
        async with client_of(node) as client:
            assert await client.dbsize() > 0
    assert [await store.call("GET", f"{{{number}}}:key") for number in range(30)] == [str(n) for n in range(30)]


async def test_one_reachable_node_is_enough_to_find_the_others(cluster: Cluster) -> None:
    url = f"redis+cluster://:{cluster.password}@127.0.0.1:{free_port()},{cluster.nodes[1].address}"
    store = RedisStore.connect(RedisOptions(url))
    assert sorted([await count(store, f"{{{number}}}") for number in range(30)]) == [1] * 30
    await store.close()


async def test_a_cluster_that_is_not_there_is_unavailable() -> None:
    store = RedisStore.connect(RedisOptions(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}"))
    with pytest.raises(Unavailable):
        await store.time_ms()
    await store.close()


async def test_calls_beyond_the_connections_wait_for_their_turn(store: RedisStore) -> None:
    assert sorted(await asyncio.gather(*(count(store, "key") for _ in range(200)))) == list(range(1, 201))


async def test_all_instances_ask_one_clock(store: RedisStore, redis_url: str) -> None:
    other = RedisStore.connect(RedisOptions(redis_url))
    times = [await each.time_ms() for _ in range(20) for each in (store, other)]
    assert times == sorted(times)
    await other.close()


async def test_each_node_has_a_tag(store: RedisStore, cluster: Cluster) -> None:
    tags = await store.tags("index")
    assert tags[0] == "index"
    assert {(await cluster.owner(f"{{{tag}}}")).port for tag in tags} == {node.port for node in cluster.nodes}
    assert len(tags) == len(cluster.nodes)


async def test_keys_of_different_tags_in_one_call_are_a_fault_of_ours(store: RedisStore) -> None:
    with pytest.raises(ResponseError):
        await store.call("DEL", "{a}", "{b}")


async def test_no_call_fails_or_is_made_twice_while_its_slot_moves(store: RedisStore, cluster: Cluster) -> None:
    calls = 0
    moved = asyncio.Event()

    async def go_on() -> None:
        nonlocal calls
        while not moved.is_set():
            await store.run("limit", ["{a}limit"], [60, 1])
            await count(store, "{a}calls")
            calls += 1

    await store.call("MSET", *(text for number in range(300) for text in (f"{{a}}{number}", number)))
    callers = [asyncio.create_task(go_on()) for _ in range(4)]
    target = await cluster.begin_move("{a}")
    await store.call("PING")
    before = calls
    await eventually(lambda: asyncio.sleep(0, calls), lambda now: now > before + 100)
    await cluster.end_move("{a}", target)
    before = calls
    await eventually(lambda: asyncio.sleep(0, calls), lambda now: now > before + 100)
    moved.set()
    await asyncio.gather(*callers)
    assert int(await store.call("GET", "{a}calls")) == calls
    assert await cluster.owner("{a}") is target


async def test_keys_of_a_slot_on_its_way_that_are_apart_are_waited_for_or_unavailable(
    store: RedisStore, cluster: Cluster
) -> None:
    for number in range(20):
        await store.call("SET", f"{{a}}{number}", number)
    target = await cluster.begin_move("{a}")
    wanted = [f"{{a}}{number}" for number in range(20)]
    with pytest.raises(Unavailable):
        await store.call("MGET", *wanted)
    await cluster.end_move("{a}", target)
    assert await store.call("MGET", *wanted) == [str(number) for number in range(20)]


async def test_a_node_that_is_away_stops_nothing_that_is_on_others(store: RedisStore, cluster: Cluster) -> None:
    away = cluster.nodes[0]
    tags = [f"{{{number}}}" for number in range(30)]
    there = [tag for tag in tags if await cluster.owner(tag) is not away]
    for tag in tags:
        await count(store, tag)
    await crash(away)
    for _ in range(5):
        for tag in set(tags) - set(there):
            with pytest.raises(Unavailable):
                await count(store, tag)
        assert {await store.call("EXISTS", tag) for tag in there} == {1}
    await away.restart()
    await cluster.agreed()
    await eventually(lambda: _all(store, tags), bool)


async def test_a_node_that_hangs_does_not_slow_the_others(store: RedisStore, cluster: Cluster) -> None:
    away = cluster.nodes[2]
    tags = [f"{{{number}}}" for number in range(30)]
    owners = {tag: await cluster.owner(tag) for tag in tags}
    stuck, fine = (next(tag for tag in tags if (owners[tag] is away) is hangs) for hangs in (True, False))
    await count(store, fine)
    with hung(away):

        async def suffer() -> None:
            for _ in range(2):
                with suppress(Unavailable):
                    await count(store, stuck)

        sufferers = [asyncio.create_task(suffer()) for _ in range(6)]
        async with asyncio.timeout(5):
            calls = 0
            while not sufferers[0].done():
                await count(store, fine)
                calls += 1
        assert calls > 50
        await asyncio.gather(*sufferers)


async def _all(store: RedisStore, tags: list[str]) -> bool:
    try:
        for tag in tags:
            await count(store, tag)
    except Unavailable:
        return False
    return True
