"""Results: taken, repeated, late, replaced, cut (contract section 3, promises 4, 5 and 10)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.errors import CommandAlreadyCompleted
from aizen_gateway.domain.values import ResultStatus
from tests.support.bench import Bench
from tests.support.clients import API, World, expect
from tests.support.gateway import StartGateway
from tests.support.inside import comes_to, ended, passes
from tests.support.line import Line
from tests.support.waiting import TIME

OUTPUT_LIMIT = 128 * 1024
ERROR_LIMIT = 8 * 1024
BODY_LIMIT = 256 * 1024
ENDINGS = [("success", "succeeded"), ("failure", "failed"), ("timeout", "timed_out"), ("canceled", "canceled")]


@pytest.mark.parametrize(("told", "status"), ENDINGS)
async def test_a_result_ends_its_command(line: Line, told: str, status: str) -> None:
    claimed = await line.claimed()
    answer = expect(await line.device.report(claimed, told), 200)
    assert answer == {"success": True, "status": status, "duplicate": False, "late": False}
    seen = await line.seen(claimed)
    assert (seen["status"], seen["result"]["status"]) == (status, told)
    assert seen["completedAt"] == seen["result"]["receivedAt"]
    assert await line.device.claim(limit=10) == []


async def test_the_customer_sees_the_result_as_the_device_told_it(line: Line) -> None:
    claimed = await line.claimed()
    told = {
        "output": "4 packets\u0000\u2028 ü",
        "error": "none",
        "result": {"rtt": [1.5, 2], "ok": True, "host": None},
        "executedAt": "2026-01-02T03:04:05.678Z",
        "duration": 1234.5,
    }
    expect(await line.device.report(claimed, "failure", **told), 200)
    result = (await line.seen(claimed))["result"]
    assert TIME.fullmatch(result.pop("receivedAt"))
    cleaned = "4 packets\ufffd\u2028 ü"
    assert result == {**told, "output": cleaned, "status": "failure", "late": False, "truncated": False}


async def test_what_a_result_leaves_out_is_null(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output=None), 200)
    result = (await line.seen(claimed))["result"]
    assert (result["output"], result["error"], result["result"]) == (None, None, None)
    assert "originalBytes" not in result


async def test_a_lone_surrogate_becomes_a_replacement_character(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output="a\ud800b", result={"\udfff": "\ud83d"}), 200)
    result = (await line.seen(claimed))["result"]
    assert (result["output"], result["result"]) == ("a\ufffdb", {"\ufffd": "\ufffd"})


async def test_the_answer_names_the_next_command_and_claims_it_not(line: Line) -> None:
    claimed = await line.claimed()
    await line.submit("restart_dhcp", priority=1)
    await line.submit()
    urgent = await line.submit(priority=2)
    answer = expect(await line.device.report(claimed), 200)
    assert answer["nextCommand"] == {"id": urgent["id"]}
    assert (await line.seen(urgent))["status"] == "queued"
    (following,) = await line.device.claim()
    assert following["id"] == urgent["id"]


async def test_the_answer_names_no_next_command_where_none_can_be_claimed(line: Line) -> None:
    first, second = await line.claimed(), await line.claimed()
    await line.submit("restart_dhcp")
    assert "nextCommand" not in expect(await line.device.report(first), 200)
    assert "nextCommand" not in expect(await line.device.report(second), 200)


async def test_the_same_result_again_is_a_duplicate_and_changes_nothing(
    line: Line, start_gateway: StartGateway
) -> None:
    claimed = await line.claimed()
    first = expect(await line.device.report(claimed, output="o", result={"a": 1, "b": 2}), 200)
    before, entries = await line.seen(claimed), await line.world.owner.transcript(line.session_id)
    for device in (line.device, line.at(await start_gateway())):
        again = expect(await device.report(claimed, output="o", result={"b": 2, "a": 1}), 200)
        assert again == {**first, "duplicate": True}
    assert await line.seen(claimed) == before
    assert await line.world.owner.transcript(line.session_id) == entries


async def test_the_same_result_means_the_same_known_fields_after_parsing(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output="o", duration=12, executedAt="2026-01-02T03:04:05.678Z"), 200)
    same: list[dict[str, Any]] = [
        {"error": None, "result": None},
        {"firmware": "2.0", "attempts": [1, 2]},
        {"duration": 12.0},
        {"executedAt": "2026-01-02T04:04:05.678+01:00"},
        {"executedAt": "2026-01-02T03:04:05.678000Z"},
    ]
    for fields in same:
        told = {"output": "o", "duration": 12, "executedAt": "2026-01-02T03:04:05.678Z", **fields}
        assert expect(await line.device.report(claimed, **told), 200)["duplicate"] is True, fields


async def test_another_result_after_the_end_is_refused_and_changes_nothing(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output="o"), 200)
    before = await line.seen(claimed)
    others: list[dict[str, Any]] = [
        {"status": "failure", "output": "o"},
        {"output": "p"},
        {},
        {"output": "o", "error": "e"},
        {"output": "o", "result": {}},
        {"output": "o", "duration": 13},
        {"output": "o", "executedAt": "2026-01-02T03:04:05.679Z"},
        {"output": "o", "claimToken": "another"},
    ]
    for fields in others:
        reply = await line.device.report(claimed, **fields)
        assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED"), fields
    assert await line.seen(claimed) == before


async def test_a_command_that_its_device_canceled_is_canceled_for_another_result(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, "canceled"), 200)
    reply = await line.device.report(claimed, "success")
    assert (reply.status, reply.code) == (409, "COMMAND_CANCELED")
    assert expect(await line.device.report(claimed, "canceled"), 200)["duplicate"] is True


async def test_a_wrong_token_reports_nothing(line: Line) -> None:
    claimed, other, waiting = await line.claimed(), await line.claimed(), await line.submit()
    unapproved = await line.submit("restart_dhcp")
    for command in (claimed, waiting, unapproved):
        reply = await line.device.report({**command, "claimToken": other["claimToken"]})
        assert (reply.status, reply.code) == (403, "INVALID_CLAIM_TOKEN")
    statuses = [(await line.seen(command))["status"] for command in (claimed, waiting, unapproved)]
    assert statuses == ["claimed", "queued", "pending_approval"]


async def test_a_late_result_counts_while_nobody_has_claimed_the_command_since(line: Line, valkey: Redis) -> None:
    await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    await passes(valkey, 1000)
    answer = expect(await line.device.report(claimed), 200)
    assert answer == {"success": True, "status": "succeeded", "duplicate": False, "late": True}
    assert (await line.seen(claimed))["result"]["late"] is True
    assert await line.device.claim(limit=10) == []
    again = expect(await line.device.report(claimed), 200)
    assert (again["duplicate"], again["late"]) == (True, True)


async def test_a_late_result_counts_after_the_command_went_back_to_the_queue(line: Line) -> None:
    command = await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    await comes_to(line.world, command, "queued")
    answer = expect(await line.device.report(claimed, "failure"), 200)
    assert (answer["status"], answer["late"]) == ("failed", True)
    assert await line.device.claim(limit=10) == []
    assert (await line.seen(command))["status"] == "failed"


async def test_an_older_token_reports_nothing_and_the_newer_lease_is_not_touched(line: Line) -> None:
    await line.submit()
    (old,) = await line.device.claim(visibilityTimeout=1000)
    (new,) = await line.device.claim(waitMs=10_000)
    reply = await line.device.report(old)
    assert (reply.status, reply.code) == (403, "INVALID_CLAIM_TOKEN")
    read = expect(await line.device.read(new["id"]), 200)["command"]
    assert (read["status"], read["claimToken"], read["visibleUntil"]) == (
        "claimed",
        new["claimToken"],
        new["visibleUntil"],
    )
    assert await line.device.claim() == []
    assert expect(await line.device.report(new), 200)["late"] is False
    reply = await line.device.report(old)
    assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_the_devices_own_result_replaces_undeliverable_once(line: Line) -> None:
    await line.approved()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    assert (await ended(line.world, await line.seen(claimed)))["status"] == "undeliverable"
    wrong = await line.device.report({**claimed, "claimToken": "wrong"})
    assert (wrong.status, wrong.code) == (409, "COMMAND_ALREADY_COMPLETED")
    answer = expect(await line.device.report(claimed, output="done"), 200)
    assert answer == {"success": True, "status": "succeeded", "duplicate": False, "late": True}
    seen = await line.seen(claimed)
    assert (seen["status"], seen["result"]["late"], seen["result"]["output"]) == ("succeeded", True, "done")
    assert expect(await line.device.report(claimed, output="done"), 200)["duplicate"] is True
    reply = await line.device.report(claimed, "failure")
    assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")
    assert await line.seen(claimed) == seen


@pytest.mark.parametrize(("told", "status"), ENDINGS)
async def test_the_devices_own_result_replaces_a_presumed_time_out_once(bench: Bench, told: str, status: str) -> None:
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"), timeout_ms=1)
    (claimed,) = await device.claim()
    await bench.passes(claimed["timestamp"], 1)
    await bench.parts.sweep.commands()
    assert (await bench.command(command))["status"] == "timed_out"
    answer = await device.report(claimed, ResultStatus(told))
    assert (answer["status"], answer["late"], answer["duplicate"]) == (status, True, False)
    seen = await bench.command(command)
    assert (seen["status"], seen["result"]["status"], seen["result"]["late"]) == (status, told, True)
    other = ResultStatus.FAILURE if told != "failure" else ResultStatus.SUCCESS
    with pytest.raises(Exception, match=r"has ended|has been canceled"):
        await device.report(claimed, other)
    assert (await device.report(claimed, ResultStatus(told)))["duplicate"] is True


async def test_a_time_out_that_the_device_told_is_no_presumption(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, "timeout"), 200)
    reply = await line.device.report(claimed, "success")
    assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_a_presumption_is_not_replaced_with_an_older_token(bench: Bench) -> None:
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"), max_deliveries=2)
    (old,) = await device.claim(visibility_ms=1)
    await bench.passes(old["visibleUntil"])
    (new,) = await device.claim(visibility_ms=1)
    await bench.passes(new["visibleUntil"])
    await bench.parts.sweep.commands()
    assert (await bench.command(command))["status"] == "undeliverable"
    with pytest.raises(CommandAlreadyCompleted):
        await device.report(old)
    assert (await device.report(new))["late"] is True


async def test_output_over_its_limit_is_cut_and_said_to_be_cut(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output="x" * OUTPUT_LIMIT + "é"), 200)
    result = (await line.seen(claimed))["result"]
    assert result["output"] == "x" * OUTPUT_LIMIT
    assert (result["truncated"], result["originalBytes"]) == (True, OUTPUT_LIMIT + 2)


async def test_output_at_its_limit_is_kept_whole(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output="x" * OUTPUT_LIMIT, error="e" * ERROR_LIMIT), 200)
    result = (await line.seen(claimed))["result"]
    assert (len(result["output"]), len(result["error"])) == (OUTPUT_LIMIT, ERROR_LIMIT)
    assert result["truncated"] is False
    assert "originalBytes" not in result


async def test_the_limits_count_characters_and_the_original_is_told_in_bytes(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, "failure", error="\U0001f600" * (ERROR_LIMIT + 1)), 200)
    result = (await line.seen(claimed))["result"]
    assert result["error"] == "\U0001f600" * ERROR_LIMIT
    assert (result["truncated"], result["originalBytes"]) == (True, 4 * (ERROR_LIMIT + 1))


async def test_output_and_error_are_both_cut(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed, output="o" * (OUTPUT_LIMIT + 7), error="e" * (ERROR_LIMIT + 1)), 200)
    result = (await line.seen(claimed))["result"]
    assert (len(result["output"]), len(result["error"])) == (OUTPUT_LIMIT, ERROR_LIMIT)
    assert (result["truncated"], result["originalBytes"]) == (True, OUTPUT_LIMIT + 7)


async def test_a_result_that_was_cut_is_the_same_when_it_comes_again(line: Line) -> None:
    claimed = await line.claimed()
    output = "x" * (OUTPUT_LIMIT + 10)
    expect(await line.device.report(claimed, output=output), 200)
    assert expect(await line.device.report(claimed, output=output), 200)["duplicate"] is True
    assert (await line.device.report(claimed, output=output + "x")).status == 409


def body(claimed: Any) -> dict[str, Any]:
    return {
        "claimToken": claimed["claimToken"],
        "status": "success",
        "executedAt": "2026-01-02T03:04:05.678Z",
        "duration": 1,
    }


def of_size(claimed: Any, size: int) -> bytes:
    """A result of exactly `size` bytes."""
    bare = len(json.dumps({**body(claimed), "output": ""}))
    raw = json.dumps({**body(claimed), "output": "x" * (size - bare)}).encode()
    assert len(raw) == size
    return raw


async def send(world: World, token: str, claimed: Any, data: Any) -> int:
    headers = {"X-Device-Token": token, "Content-Type": "application/json"}
    url = f"{world.url}{API}/device/commands/{claimed['id']}/result"
    async with world.http.post(url, data=data, headers=headers) as response:
        return response.status


async def test_a_result_of_256_kib_is_never_refused_for_its_length(line: Line) -> None:
    claimed = await line.claimed()
    assert await send(line.world, line.device.token, claimed, of_size(claimed, BODY_LIMIT)) == 200
    result = (await line.seen(claimed))["result"]
    assert (len(result["output"]), result["truncated"]) == (OUTPUT_LIMIT, True)


async def test_a_result_over_256_kib_is_too_large_and_the_claim_goes_on(line: Line) -> None:
    claimed = await line.claimed()
    raw = of_size(claimed, BODY_LIMIT + 1)

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), 10_000):
            yield raw[start : start + 10_000]

    assert await send(line.world, line.device.token, claimed, raw) == 413
    assert await send(line.world, line.device.token, claimed, in_pieces()) == 413
    reply = await line.device.report(claimed, output="x" * BODY_LIMIT)
    assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")
    assert (await line.seen(claimed))["status"] == "claimed"
    assert expect(await line.device.report(claimed), 200)["duplicate"] is False


async def test_a_result_object_may_fill_the_body(line: Line) -> None:
    claimed = await line.claimed()
    result = {"lines": ["x" * 100 for _ in range(2_000)]}
    expect(await line.device.report(claimed, result=result), 200)
    assert (await line.seen(claimed))["result"]["result"] == result


async def test_a_result_that_is_not_well_formed_names_its_field_and_ends_nothing(line: Line) -> None:
    claimed = await line.claimed()
    cases: list[tuple[str, Any]] = [
        ("status", "ok"),
        ("status", None),
        ("status", "SUCCESS"),
        ("status", 1),
        ("output", 5),
        ("output", ["line"]),
        ("error", {}),
        ("result", "text"),
        ("result", [1]),
        ("executedAt", None),
        ("executedAt", "yesterday"),
        ("executedAt", 1_700_000_000_000),
        ("executedAt", "2026-01-02T03:04:05"),
        ("executedAt", "2026-02-30T00:00:00Z"),
        ("executedAt", "0001-01-01T00:00:00+14:00"),
        ("executedAt", "9999-12-31T23:59:59-14:00"),
        ("duration", None),
        ("duration", -1),
        ("duration", "12"),
        ("duration", True),
    ]
    for name, value in cases:
        reply = await line.device.post(f"{API}/device/commands/{claimed['id']}/result", {**body(claimed), name: value})
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST"), (name, value)
        assert reply.fields.keys() == {name}, (name, value)
    assert (await line.seen(claimed))["status"] == "claimed"


async def test_a_result_may_come_to_another_instance_than_the_claim(line: Line, start_gateway: StartGateway) -> None:
    claimed = await line.claimed()
    expect(await line.at(await start_gateway()).report(claimed), 200)
    assert (await line.seen(claimed))["status"] == "succeeded"
    assert expect(await line.device.report(claimed), 200)["duplicate"] is True
