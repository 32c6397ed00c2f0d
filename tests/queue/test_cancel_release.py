"""Commands that are called off, by their customer or by their device (contract sections 3 and 4)."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.support.clients import API, Reply, expect
from tests.support.gateway import StartGateway
from tests.support.inside import ended, passes
from tests.support.line import Line
from tests.support.waiting import until_past


def refused(reply: Reply) -> tuple[int, str | None]:
    return reply.status, reply.code


async def canceled(line: Line, command: object, **fields: object) -> str:
    """Cancel a command; the status it then has."""
    assert isinstance(command, dict)
    reply = await line.world.owner.cancel({"sessionId": line.session_id, **command}, **fields)
    return str(expect(reply, 200)["command"]["status"])


async def test_a_command_that_nobody_claimed_is_canceled_at_once_and_never_handed_out(line: Line) -> None:
    command, unapproved = await line.submit(), await line.submit("restart_dhcp")
    assert await canceled(line, command, reason="no need") == "canceled"
    assert await canceled(line, unapproved) == "canceled"
    assert await line.device.claim(limit=10) == []
    assert expect(await line.device.heartbeat(), 200)["pendingCommands"] == 0
    read = expect(await line.device.read(command["id"]), 200)["command"]
    assert read["status"] == "canceled"


async def test_a_claimed_command_is_asked_to_stop_and_extending_tells_the_device(line: Line) -> None:
    claimed = await line.claimed()
    assert "cancelRequested" not in expect(await line.device.extend(claimed), 200)
    assert await canceled(line, claimed) == "cancel_requested"
    assert expect(await line.device.extend(claimed), 200)["cancelRequested"] is True
    read = expect(await line.device.read(claimed["id"]), 200)["command"]
    assert (read["status"], read["claimToken"]) == ("cancel_requested", claimed["claimToken"])


@pytest.mark.parametrize(
    ("told", "status"),
    [("success", "succeeded"), ("failure", "failed"), ("timeout", "timed_out"), ("canceled", "canceled")],
)
async def test_what_the_device_answers_to_a_request_to_cancel_counts(line: Line, told: str, status: str) -> None:
    claimed = await line.claimed()
    await canceled(line, claimed)
    answer = expect(await line.device.report(claimed, told), 200)
    assert (answer["status"], answer["late"]) == (status, False)
    assert (await line.seen(claimed))["status"] == status


async def test_without_an_answer_it_ends_as_canceled_with_its_lease_and_is_never_redelivered(line: Line) -> None:
    await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    await canceled(line, claimed)
    assert await line.device.claim(waitMs=1300) == []
    seen = await ended(line.world, await line.seen(claimed))
    assert (seen["status"], seen["attempt"]) == ("canceled", 1)
    assert seen["completedAt"] >= claimed["visibleUntil"]
    assert refused(await line.device.report(claimed)) == (409, "COMMAND_CANCELED")
    assert await line.device.claim(limit=10) == []


async def test_asking_twice_to_cancel_changes_nothing(line: Line) -> None:
    claimed = await line.claimed()
    assert await canceled(line, claimed, reason="first") == "cancel_requested"
    assert await canceled(line, claimed, reason="second") == "cancel_requested"
    expect(await line.device.report(claimed), 200)


async def test_force_cancels_a_claimed_command_at_once(line: Line) -> None:
    claimed = await line.claimed()
    assert await canceled(line, claimed, force=True) == "canceled"
    for reply in (
        await line.device.report(claimed),
        await line.device.extend(claimed),
        await line.device.release(claimed),
    ):
        assert refused(reply) == (409, "COMMAND_CANCELED")
    assert await line.device.claim(limit=10) == []
    assert (await line.seen(claimed)).get("result") is None


async def test_force_cancels_what_was_asked_to_stop_before(line: Line) -> None:
    claimed = await line.claimed()
    assert await canceled(line, claimed) == "cancel_requested"
    assert await canceled(line, claimed, force=True) == "canceled"
    assert refused(await line.device.report(claimed)) == (409, "COMMAND_CANCELED")


async def test_an_ended_command_cannot_be_canceled(line: Line) -> None:
    done = await line.claimed()
    expect(await line.device.report(done), 200)
    gone = await line.submit()
    await canceled(line, gone)
    for command in (done, gone):
        for force in (False, True):
            reply = await line.world.owner.cancel({"sessionId": line.session_id, **command}, force=force)
            assert refused(reply) == (409, "COMMAND_ALREADY_COMPLETED")
    assert (await line.seen(done))["status"] == "succeeded"


async def test_a_command_whose_lease_ran_out_is_nobodys_and_is_canceled_at_once(line: Line, valkey: Redis) -> None:
    await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    await passes(valkey, 1000)
    assert await canceled(line, claimed) == "canceled"
    assert await line.device.claim(limit=10) == []


async def test_closing_a_session_cancels_what_is_open_in_it(line: Line) -> None:
    claimed = await line.claimed()
    waiting, unapproved = await line.submit(), await line.submit("restart_dhcp")
    expect(await line.world.owner.post(f"{API}/customer/sessions/{line.session_id}/close"), 200)
    statuses = [(await line.seen(command))["status"] for command in (claimed, waiting, unapproved)]
    assert statuses == ["cancel_requested", "canceled", "canceled"]
    assert await line.device.claim(limit=10) == []
    assert expect(await line.device.extend(claimed), 200)["cancelRequested"] is True
    assert expect(await line.device.report(claimed), 200)["status"] == "succeeded"


async def test_a_suspended_device_may_answer_when_it_is_back(line: Line) -> None:
    claimed, waiting = await line.claimed(), await line.submit()
    device = f"{API}/customer/devices/{line.device.device_id}"
    expect(await line.world.owner.post(f"{device}/suspend"), 200)
    statuses = [(await line.seen(command))["status"] for command in (claimed, waiting)]
    assert statuses == ["cancel_requested", "canceled"]
    assert refused(await line.device.report(claimed)) == (401, "UNAUTHENTICATED")
    expect(await line.world.owner.post(f"{device}/resume"), 200)
    expect(await line.device.sign_in(), 200)
    assert await line.device.claim(limit=10) == []
    assert expect(await line.device.report(claimed), 200)["status"] == "succeeded"


async def test_deleting_a_device_cancels_everything_of_it(line: Line) -> None:
    claimed, waiting = await line.claimed(), await line.submit()
    path = f"{API}/customer/devices/{line.device.device_id}"
    assert (await line.world.owner.call("DELETE", path)).status == 204
    assert [(await line.seen(command))["status"] for command in (claimed, waiting)] == ["canceled", "canceled"]


async def test_a_released_command_can_be_claimed_at_once_and_no_delivery_is_counted(line: Line) -> None:
    command = await line.approved()
    tokens = set()
    for _ in range(3):
        (claimed,) = await line.device.claim()
        assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
        tokens.add(claimed["claimToken"])
        assert expect(await line.device.release(claimed), 200) == {"success": True}
        seen = await line.seen(command)
        assert (seen["status"], seen["attempt"]) == ("queued", 0)
        assert "claimedAt" not in seen
    assert len(tokens) == 3


async def test_a_released_command_keeps_its_place(line: Line) -> None:
    first, second = await line.submit(), await line.submit()
    (claimed,) = await line.device.claim()
    expect(await line.device.release(claimed), 200)
    assert [found["id"] for found in await line.device.claim(limit=2)] == [first["id"], second["id"]]


async def test_a_released_command_may_be_claimed_at_another_instance(line: Line, start_gateway: StartGateway) -> None:
    elsewhere = line.at(await start_gateway())
    claimed = await line.claimed()
    expect(await elsewhere.release(claimed), 200)
    (again,) = await elsewhere.claim()
    assert (again["id"], again["attempt"]) == (claimed["id"], 1)


async def test_the_token_of_a_released_claim_is_worth_nothing(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.release(claimed), 200)
    for reply in (
        await line.device.release(claimed),
        await line.device.extend(claimed),
        await line.device.report(claimed),
    ):
        assert refused(reply) == (403, "INVALID_CLAIM_TOKEN")
    (again,) = await line.device.claim()
    for reply in (await line.device.release(claimed), await line.device.report(claimed)):
        assert refused(reply) == (403, "INVALID_CLAIM_TOKEN")
    expect(await line.device.report(again), 200)


async def test_another_token_releases_nothing(line: Line) -> None:
    claimed, other = await line.claimed(), await line.claimed()
    assert refused(await line.device.release({**claimed, "claimToken": other["claimToken"]})) == (
        403,
        "INVALID_CLAIM_TOKEN",
    )
    assert (await line.seen(claimed))["status"] == "claimed"
    expect(await line.device.report(claimed), 200)


async def test_an_ended_command_cannot_be_released(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed), 200)
    assert refused(await line.device.release(claimed)) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_releasing_what_was_asked_to_stop_cancels_it(line: Line) -> None:
    claimed = await line.claimed()
    await canceled(line, claimed)
    assert expect(await line.device.release(claimed), 200) == {"success": True}
    assert (await line.seen(claimed))["status"] == "canceled"
    assert await line.device.claim(limit=10) == []


async def test_a_release_does_not_revive_what_has_expired(line: Line) -> None:
    await line.submit(expiresInMs=1000)
    (claimed,) = await line.device.claim()
    await until_past(claimed["expiresAt"])
    expect(await line.device.release(claimed), 200)
    assert await line.device.claim(limit=10) == []
    assert (await ended(line.world, await line.seen(claimed)))["status"] == "expired"
