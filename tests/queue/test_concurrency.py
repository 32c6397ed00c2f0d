"""Many at once on two instances: nothing is handed out twice, counted twice or decided twice (contract section 3)."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.clients import API, DeviceClient, Reply, expect
from tests.support.gateway import StartGateway, StartWorld
from tests.support.inside import passes
from tests.support.line import Line

UNLIMITED = {"AIZEN_RATE_LIMIT_DEVICE": "0", "AIZEN_RATE_LIMIT_CUSTOMER": "0"}


@pytest.fixture
async def lines(start_world: StartWorld, start_gateway: StartGateway) -> tuple[Line, list[DeviceClient]]:
    """A device with a session, and the device at each of two instances."""
    line = await Line.open(await start_world(**UNLIMITED))
    return line, [line.device, line.at(await start_gateway(**UNLIMITED))]


async def test_of_many_claims_at_once_no_two_get_the_same_command(lines: tuple[Line, list[DeviceClient]]) -> None:
    line, devices = lines
    submitted = [(await line.submit(priority=number % 3 + 1))["id"] for number in range(60)]
    claims = await asyncio.gather(*(devices[number % 2].claim(limit=number % 4 + 1) for number in range(40)))
    got = Counter(claimed["id"] for claim in claims for claimed in claim)
    assert got == Counter(submitted)
    for claim in claims:
        priorities = [claimed["priority"] for claimed in claim]
        assert priorities == sorted(priorities)
    session = await line.world.owner.session(line.session_id)
    assert {(command["status"], command["attempt"]) for command in session["commands"]} == {("claimed", 1)}


async def test_claims_while_commands_come_get_each_once_and_the_most_urgent_first(
    lines: tuple[Line, list[DeviceClient]],
) -> None:
    line, devices = lines
    got: list[Any] = []

    async def work(device: DeviceClient) -> None:
        while len(got) < 60:
            claims = await device.claim(limit=2, waitMs=100)
            got.extend(claims)
            for claimed in claims:
                answer = expect(await device.report(claimed), 200)
                assert (answer["duplicate"], answer["late"]) == (False, False)

    async def submit(count: int) -> list[str]:
        return [(await line.submit(priority=number % 10 + 1))["id"] for number in range(count)]

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for device in devices * 4:
            group.create_task(work(device))
        submissions = [group.create_task(submit(30)) for _ in range(2)]
    submitted = [command_id for submission in submissions for command_id in submission.result()]
    assert Counter(claimed["id"] for claimed in got) == Counter(submitted)
    assert {claimed["attempt"] for claimed in got} == {1}
    session = await line.world.owner.session(line.session_id)
    assert {command["status"] for command in session["commands"]} == {"succeeded"}


async def test_commands_taken_one_after_another_by_many_come_in_the_queues_order(
    lines: tuple[Line, list[DeviceClient]],
) -> None:
    """Whoever asks later is given nothing more urgent than who had been answered before."""
    line, devices = lines
    submitted = [await line.submit(priority=number * 7 % 10 + 1) for number in range(40)]
    expected = [command["id"] for command in sorted(submitted, key=lambda command: command["priority"])]
    got: list[str] = []
    turn = asyncio.Lock()

    async def work(device: DeviceClient) -> None:
        for _ in range(10):
            async with turn:
                got.extend(claimed["id"] for claimed in await device.claim())

    await asyncio.gather(*(work(device) for device in devices for _ in range(2)))
    assert got == expected


async def test_a_lapsed_lease_is_taken_by_one_of_many(lines: tuple[Line, list[DeviceClient]], valkey: Redis) -> None:
    line, devices = lines
    submitted = {(await line.submit())["id"] for _ in range(5)}
    first = await line.device.claim(limit=5, visibilityTimeout=1000)
    await passes(valkey, 1000)
    claims = await asyncio.gather(*(devices[number % 2].claim(limit=3) for number in range(12)))
    got = [claimed for claim in claims for claimed in claim]
    assert Counter(claimed["id"] for claimed in got) == Counter(submitted)
    assert {claimed["attempt"] for claimed in got} == {2}
    assert not {claimed["claimToken"] for claimed in got} & {claimed["claimToken"] for claimed in first}


async def test_of_many_different_results_at_once_one_wins(lines: tuple[Line, list[DeviceClient]]) -> None:
    line, devices = lines
    for _ in range(5):
        claimed = await line.claimed()
        replies = await asyncio.gather(
            *(devices[number % 2].report(claimed, output=f"number {number}") for number in range(10))
        )
        assert Counter(reply.status for reply in replies) == {200: 1, 409: 9}
        assert {reply.code for reply in replies} == {None, "COMMAND_ALREADY_COMPLETED"}
        (winner,) = [number for number, reply in enumerate(replies) if reply.status == 200]
        assert (await line.seen(claimed))["result"]["output"] == f"number {winner}"
        events = [
            entry["event"]
            for entry in await line.world.owner.transcript(line.session_id)
            if entry.get("commandId") == claimed["id"]
        ]
        assert events.count("command.succeeded") == 1


async def test_of_the_same_result_sent_many_times_at_once_one_counts_and_the_others_are_duplicates(
    lines: tuple[Line, list[DeviceClient]],
) -> None:
    line, devices = lines
    claimed = await line.claimed()
    replies = await asyncio.gather(*(devices[number % 2].report(claimed) for number in range(10)))
    assert Counter(expect(reply, 200)["duplicate"] for reply in replies) == {False: 1, True: 9}


async def test_of_a_result_a_release_and_a_forced_cancel_at_once_one_wins(
    lines: tuple[Line, list[DeviceClient]],
) -> None:
    line, devices = lines
    outcomes = set()
    for number in range(12):
        claimed = await line.claimed()
        ways = [
            devices[number % 2].report(claimed),
            devices[1].release(claimed),
            line.world.owner.cancel({"sessionId": line.session_id, **claimed}, force=True),
        ]
        order = [ways[(number + turn) % 3] for turn in range(3)]
        replies: list[Reply] = await asyncio.gather(*order)
        statuses = {reply.status for reply in replies}
        assert statuses <= {200, 403, 409}
        seen = (await line.seen(claimed))["status"]
        assert seen in ("succeeded", "canceled")
        outcomes.add(seen)
        assert await line.device.claim(limit=10) == []
    assert outcomes


async def test_a_cancel_and_a_claim_at_once_agree(lines: tuple[Line, list[DeviceClient]]) -> None:
    line, devices = lines
    for number in range(12):
        command = await line.submit()
        canceled, claims = await asyncio.gather(line.world.owner.cancel(command), devices[number % 2].claim())
        status = expect(canceled, 200)["command"]["status"]
        assert status == ("cancel_requested" if claims else "canceled")
        if claims:
            expect(await line.device.report(claims[0], "canceled"), 200)
        assert (await line.seen(command))["status"] == "canceled"
        assert await line.device.claim() == []


async def test_of_many_submissions_to_an_almost_full_queue_as_many_win_as_there_is_room(
    lines: tuple[Line, list[DeviceClient]],
) -> None:
    line, devices = lines
    for _ in range(97):
        await line.submit()
    owners = [line.world.owner, replace(line.world.owner, url=devices[1].url)]
    path = f"{API}/customer/sessions/{line.session_id}/commands"
    replies = await asyncio.gather(*(owners[number % 2].post(path, {"type": "ping"}) for number in range(10)))
    assert Counter(reply.status for reply in replies) == {201: 3, 409: 7}
    assert {reply.code for reply in replies} == {None, "QUEUE_FULL"}


async def test_claims_while_their_session_is_closed_never_fail(lines: tuple[Line, list[DeviceClient]]) -> None:
    """Both lock several commands, and must do it in one order."""
    line, devices = lines
    for _ in range(15):
        session = await line.world.owner.session(line.session_id)
        if session["status"] != "active":
            line.session_id = (await line.world.owner.open_session(line.device.device_id))["id"]
        for number in range(12):
            await line.submit(priority=(number * 7) % 10 + 1)
        close = line.world.owner.post(f"{API}/customer/sessions/{line.session_id}/close")
        closed, *claims = await asyncio.gather(close, *(device.claim(limit=6) for device in devices))
        expect(closed, 200)
        for claimed in (found for claim in claims for found in claim):
            expect(await line.device.report(claimed), 200)
        statuses = {command["status"] for command in (await line.world.owner.session(line.session_id))["commands"]}
        assert statuses <= {"succeeded", "canceled"}


async def test_suspending_while_commands_are_submitted_never_fails(lines: tuple[Line, list[DeviceClient]]) -> None:
    line, _ = lines
    device = f"{API}/customer/devices/{line.device.device_id}"
    path = f"{API}/customer/sessions/{{}}/commands"
    for _ in range(8):
        session = (await line.world.owner.open_session(line.device.device_id))["id"] if _ else line.session_id
        suspended, *replies = await asyncio.gather(
            line.world.owner.post(f"{device}/suspend"),
            *(line.world.owner.post(path.format(session), {"type": "ping"}) for _ in range(6)),
        )
        expect(suspended, 200)
        assert {reply.status for reply in replies} <= {201, 409}
        commands = (await line.world.owner.session(session))["commands"]
        assert {command["status"] for command in commands} <= {"canceled"}
        assert len(commands) == sum(reply.status == 201 for reply in replies)
        expect(await line.world.owner.post(f"{device}/resume"), 200)


async def test_many_devices_at_once_get_their_own_commands(
    lines: tuple[Line, list[DeviceClient]],
) -> None:
    line, devices = lines
    others = [await Line.open(line.world) for _ in range(8)]
    submitted = {}
    for other in others:
        submitted[other.device.device_id] = [(await other.submit())["id"] for _ in range(5)]

    async def claim_all(device: DeviceClient) -> list[str]:
        elsewhere = replace(device, url=devices[1].url)
        claims = await asyncio.gather(*((device if turn % 2 else elsewhere).claim(limit=2) for turn in range(4)))
        return [claimed["id"] for claim in claims for claimed in claim]

    got = await asyncio.gather(*(claim_all(other.device) for other in others))
    for other, ids in zip(others, got, strict=True):
        assert sorted(ids) == sorted(submitted[other.device.device_id])
