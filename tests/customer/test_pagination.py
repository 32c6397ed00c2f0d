"""Lists come in pages, the newest first, without gap or repeat (contract section 1, Lists)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.clients import API, World, expect

CUSTOMER = f"{API}/customer"
# Every cursor list, with the name of what it lists.
LISTS = {
    "sessions": "sessions",
    "devices/edge-0/commands": "commands",
    "approvals": "approvals",
    "audit": "records",
}


async def filled(world: World) -> None:
    """Seven or more of everything that is listed."""
    await asyncio.gather(*(world.owner.provision(f"edge-{number}") for number in range(7)))
    sessions = await asyncio.gather(*(world.owner.open_session(f"edge-{number}") for number in range(7)))
    first = next(session for session in sessions if session["deviceId"] == "edge-0")
    # Many at once, so that some are made within one millisecond.
    await asyncio.gather(*(world.owner.submit(first["id"], "restart_service") for _ in range(9)))


async def page(world: World, path: str, **query: Any) -> Any:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return expect(await world.owner.get(f"{CUSTOMER}/{path}?{text}"), 200)


async def walked(world: World, path: str, limit: int, **query: Any) -> list[Any]:
    """The whole list, page by page; each but the last is full."""
    name, found = LISTS[path], list[Any]()
    cursor: dict[str, str] = {}
    while True:
        body = await page(world, path, limit=limit, **query, **cursor)
        assert set(body) == {name, "nextCursor"}
        found += body[name]
        if body["nextCursor"] is None:
            assert len(body[name]) <= limit
            return found
        assert len(body[name]) == limit
        assert isinstance(body["nextCursor"], str)
        cursor = {"cursor": body["nextCursor"]}


def age_of(item: Any) -> Any:
    """What rises with every newer one. Records of calls at the same time are in the order of their writing."""
    return int(item["id"]) if "at" in item else item.get("createdAt") or item["requestedAt"]


async def test_pages_of_any_size_add_up_to_the_whole_newest_first(world: World) -> None:
    await filled(world)
    for path, name in LISTS.items():
        body = await page(world, path)
        assert body["nextCursor"] is None
        whole = body[name]
        assert len(whole) >= 7
        ages = [age_of(item) for item in whole]
        assert ages == sorted(ages, reverse=True), path
        for limit in (1, 3, len(whole) - 1, len(whole)):
            assert await walked(world, path, limit) == whole, (path, limit)


async def test_filters_hold_on_every_page(world: World) -> None:
    await filled(world)
    for path, query in (
        ("sessions", {"status": "active"}),
        ("devices/edge-0/commands", {"status": "pending_approval"}),
        ("audit", {"action": "command.submitted"}),
        ("audit", {"resource": "session"}),
    ):
        whole = (await page(world, path, **query))[LISTS[path]]
        assert len(whole) >= 7
        assert await walked(world, path, 2, **query) == whole


async def test_what_is_added_while_one_pages_moves_nothing(world: World) -> None:
    await filled(world)
    for path, name in LISTS.items():
        whole = (await page(world, path))[name]
        first = await page(world, path, limit=3)
        await world.owner.provision(f"late-{path.partition('/')[0]}")
        session = await world.owner.open_session(f"late-{path.partition('/')[0]}", "remediation")
        assert session["status"] == "pending_approval"
        open_one = next(one for one in (await page(world, "sessions"))["sessions"] if one["deviceId"] == "edge-0")
        await world.owner.submit(open_one["id"], "restart_service")
        second = await page(world, path, limit=3, cursor=first["nextCursor"])
        assert first[name] + second[name] == whole[:6], path


async def test_a_list_of_nothing_is_empty_and_has_no_next_page(world: World) -> None:
    await world.owner.provision("edge-0")
    for path, name in LISTS.items():
        if path != "audit":
            assert await page(world, path) == {name: [], "nextCursor": None}
    assert await page(world, "audit", action="nothing") == {"records": [], "nextCursor": None}


@pytest.mark.parametrize("path", [*LISTS, "devices"])
async def test_a_limit_is_1_to_200_and_50_when_not_given(world: World, path: str) -> None:
    await world.owner.provision("edge-0")
    for good in (1, 200):
        await page(world, path, limit=good)
    for bad in ("0", "201", "-1", "1.5", "ten", "", "1e2", "+5", "%EF%BC%95", "9" * 30):
        reply = await world.owner.get(f"{CUSTOMER}/{path}?limit={bad}")
        assert (reply.status, reply.code, list(reply.fields)) == (400, "INVALID_REQUEST", ["limit"]), bad


async def test_a_page_has_50_when_no_limit_is_given(world: World) -> None:
    await asyncio.gather(*(world.owner.provision(f"edge-{number}") for number in range(52)))
    devices = await page(world, "devices")
    assert (len(devices["devices"]), devices["total"], devices["limit"]) == (50, 52, 50)
    audit = await page(world, "audit")
    assert len(audit["records"]) == 50
    assert audit["nextCursor"]


@pytest.mark.parametrize("path", LISTS)
async def test_a_cursor_that_the_gateway_never_gave_is_400(world: World, path: str) -> None:
    await filled(world)
    other = "audit" if path != "audit" else "sessions"
    foreign = (await page(world, other, limit=1))["nextCursor"]
    for bad in (
        "x",
        "null",
        "bnVsbA",
        "W10",
        "WyJ4IiwieSJd",
        "WzFlMzA4LCJ4Il0",
        "Wy05MjIzMzcyMDM2ODU0Nzc1ODA5XQ",
        "eyJhIjoxfQ",
        "%00",
        "%C3%A9",
        "W1tbW1tbW1tb",
        foreign,
    ):
        reply = await world.owner.get(f"{CUSTOMER}/{path}?cursor={bad}")
        assert (reply.status, reply.code, list(reply.fields)) == (400, "INVALID_REQUEST", ["cursor"]), bad
    body = await page(world, path, cursor="")
    assert body == await page(world, path)
    too_long = await world.owner.get(f"{CUSTOMER}/{path}?cursor={'x' * 600}")
    assert too_long.status == 400


async def test_an_offset_is_a_whole_number_from_zero(world: World) -> None:
    for bad in ("-1", "1.5", "x", "", "9" * 30):
        reply = await world.owner.get(f"{CUSTOMER}/devices?offset={bad}")
        assert (reply.status, list(reply.fields)) == (400, ["offset"]), bad
    assert (await page(world, "devices", offset=1_000_000))["devices"] == []


async def test_a_query_that_no_list_knows_is_400(world: World) -> None:
    await world.owner.provision("edge-0")
    for path in [*LISTS, "devices"]:
        for query, field in (("page=2", "page"), ("limit=1&limit=2", "limit"), ("Limit=1", "Limit")):
            reply = await world.owner.get(f"{CUSTOMER}/{path}?{query}")
            assert (reply.status, reply.code, list(reply.fields)) == (400, "INVALID_REQUEST", [field])
