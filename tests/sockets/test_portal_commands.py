"""Commands and approvals over a portal's socket: the same as over REST, with the same codes (section 6)."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, CustomerClient, World, expect
from tests.support.line import Line
from tests.support.portal import subscribe
from tests.support.pushes import finish, result_of
from tests.support.sockets import SocketClient, device_socket, portal_socket


async def queued(socket: SocketClient, line: Line, **fields: Any) -> Any:
    """Submit over the socket and return the command."""
    order = {"sessionId": line.session_id, "type": "ping", **fields}
    return (await socket.ask("send_command", order, answer="command_queued"))["command"]


async def refused(socket: SocketClient, message: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The error with which a message is answered."""
    return await socket.ask(message, payload, answer="error")


async def test_a_command_over_the_socket_is_the_command_of_rest(line: Line) -> None:
    fields: dict[str, Any] = {"parameters": {"target": "127.0.0.1"}, "priority": 2, "timeoutMs": 5000, "reason": "why"}
    async with portal_socket(line.world.owner) as socket:
        command = await queued(socket, line, **fields)
        assert command == await line.seen(command)
        twin = await line.submit(**fields)
        own = {"id", "createdAt", "expiresAt"}
        assert {k: v for k, v in command.items() if k not in own} == {k: v for k, v in twin.items() if k not in own}
        (claimed,) = await line.device.claim()
        assert claimed["id"] == command["id"]


async def test_remediation_over_the_socket_waits_for_a_person(line: Line) -> None:
    async with portal_socket(line.world.admin) as socket:
        command = await queued(socket, line, type="restart_dhcp")
        assert command["status"] == "pending_approval"
        decision = {"sessionId": line.session_id, "commandId": command["id"], "approved": True}
        mismatch = await refused(socket, "approve", {**decision, "digest": "sha256:" + "0" * 64})
        assert (mismatch["code"], mismatch["details"]) == ("DIGEST_MISMATCH", {"digest": command["digest"]})
        answer = await socket.ask("approve", {**decision, "digest": command["digest"]}, answer="approval_recorded")
        assert answer == {"success": True, "command": {"id": command["id"], "status": "approved"}}
        assert (await line.seen(command))["status"] == "queued"
        assert (await refused(socket, "approve", decision))["code"] == "ALREADY_DECIDED"


async def test_a_session_is_decided_over_the_socket(world: World) -> None:
    device = await world.device()
    session = await world.service.open_session(device.device_id)
    async with portal_socket(world.owner) as socket:
        decision = {"sessionId": session["id"], "approved": False}
        assert (await refused(socket, "approve", decision))["code"] == "INVALID_REQUEST"
        answer = await socket.ask("approve", {**decision, "reason": "no"}, answer="approval_recorded")
        assert answer == {"success": True, "session": {"id": session["id"], "status": "rejected"}}


async def test_failures_have_the_codes_of_rest(line: Line) -> None:
    """Each wish is sent both ways: the code, the message and the details are the same."""
    other = await Line.open(await line.world.another())
    closed = await Line.open(line.world)
    await line.world.owner.post(f"{API}/customer/sessions/{closed.session_id}/close", {})
    done = await line.submit()
    for session_id, order in (
        (line.session_id, {}),
        (line.session_id, {"type": "PING"}),
        (line.session_id, {"type": "ping", "priority": 11}),
        (line.session_id, {"type": "ping", "parameters": []}),
        (line.session_id, {"type": "ping", "parameters": {"x": "y" * 17_000}}),
        (line.session_id, {"type": "ping", "odd": 1}),
        (str(uuid4()), {"type": "ping"}),
        (other.session_id, {"type": "ping"}),
        (closed.session_id, {"type": "ping"}),
    ):
        await _same(line.world.owner, session_id, "send_command", "commands", order)
    for session_id, decision in (
        (line.session_id, {}),
        (line.session_id, {"approved": "yes"}),
        (line.session_id, {"approved": False}),
        (line.session_id, {"approved": True}),
        (line.session_id, {"approved": True, "commandId": str(uuid4())}),
        (line.session_id, {"approved": True, "commandId": done["id"]}),
        (line.session_id, {"approved": True, "digest": "x"}),
        (other.session_id, {"approved": True}),
        (closed.session_id, {"approved": True}),
    ):
        await _same(line.world.owner, session_id, "approve", "approve", decision)


async def _same(owner: CustomerClient, session_id: str, message: str, path: str, body: dict[str, Any]) -> None:
    async with portal_socket(owner) as socket:
        told = await refused(socket, message, {"sessionId": session_id, **body})
    reply = await owner.post(f"{API}/customer/sessions/{session_id}/{path}", body)
    assert reply.status >= 400
    error = reply.body["error"]
    assert {"details": {}, **told} == {name: error[name] for name in ("code", "message", "details")}


async def test_a_message_without_a_good_session_id_names_the_field(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        for bad in ({}, {"sessionId": None}, {"sessionId": "x"}, {"sessionId": 7}, {"sessionId": ""}):
            for message, rest in (("send_command", {"type": "ping"}), ("approve", {"approved": True})):
                error = await refused(socket, message, {**bad, **rest})
                assert error["code"] == "INVALID_REQUEST"
                assert list(error["details"]["fields"]) == ["sessionId"]


async def test_an_idempotency_key_is_shared_with_rest(line: Line) -> None:
    path = f"{API}/customer/sessions/{line.session_id}/commands"
    body = {"type": "ping", "parameters": {"n": 1}}
    async with portal_socket(line.world.owner) as socket, portal_socket(line.world.admin) as other:
        first = await queued(socket, line, parameters={"n": 1}, idempotencyKey="once")
        assert await queued(socket, line, parameters={"n": 1}, idempotencyKey="once") == first
        assert await queued(other, line, parameters={"n": 1}, idempotencyKey="once") == first
        again = await line.world.owner.post(path, body, Idempotency_Key="once")
        assert (again.status, again.headers["Idempotent-Replay"]) == (201, "true")
        assert again.body["command"] == first
        another = {"sessionId": line.session_id, "type": "ping", "idempotencyKey": "once"}
        assert (await refused(socket, "send_command", another))["code"] == "IDEMPOTENCY_KEY_REUSED"

        by_rest = expect(await line.world.owner.post(path, body, Idempotency_Key="twice"), 201)["command"]
        assert await queued(socket, line, parameters={"n": 1}, idempotencyKey="twice") == by_rest
        assert len((await line.world.owner.session(line.session_id))["commands"]) == 2


async def test_a_key_that_rest_would_refuse_is_refused(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        for key in ("", "x" * 129, "line\nbreak", "nul\x00", "snow ☃", 7, ["x"]):
            order = {"sessionId": line.session_id, "type": "ping", "idempotencyKey": key}
            error = await refused(socket, "send_command", order)
            assert error["code"] == "INVALID_REQUEST", key
            assert list(error["details"]["fields"]) == ["idempotencyKey"]
        # None is no key, as with REST where the header is absent.
        one, two = [await queued(socket, line, idempotencyKey=None) for _ in range(2)]
        assert one["id"] != two["id"]


async def test_of_many_repeats_at_once_one_command_comes(line: Line) -> None:
    async def ask(customer: CustomerClient) -> Any:
        async with portal_socket(customer) as socket:
            while True:
                order = {"sessionId": line.session_id, "type": "ping", "idempotencyKey": "k"}
                await socket.send("send_command", order, "r")
                frame = await socket.receive()
                if frame["type"] == "command_queued":
                    return frame["payload"]["command"]["id"]
                assert frame["payload"]["code"] == "IDEMPOTENCY_IN_PROGRESS"
                assert frame["payload"]["details"]["retryAfter"] == 1

    ids = await asyncio.gather(*(ask(line.world.owner) for _ in range(6)))
    assert len(set(ids)) == 1


@pytest.mark.parametrize("who", ["viewer", "service"])
async def test_who_may_not_decide_over_rest_may_not_over_the_socket(line: Line, who: str) -> None:
    waiting = await line.submit("restart_dhcp")
    customer: CustomerClient = getattr(line.world, who)
    async with portal_socket(customer) as socket:
        await subscribe(socket)
        for decision in ({"commandId": waiting["id"]}, {}):
            payload = {"sessionId": line.session_id, "approved": True, **decision}
            assert (await refused(socket, "approve", payload))["code"] == "FORBIDDEN"
        order = {"sessionId": line.session_id, "type": "ping"}
        if who == "viewer":
            assert (await refused(socket, "send_command", order))["code"] == "FORBIDDEN"
        else:
            # Machines propose.
            await socket.ask("send_command", order, answer="command_queued")
    assert (await line.seen(waiting))["status"] == "pending_approval"


async def test_whoever_proposed_may_not_approve_where_a_second_person_is_required(world: World) -> None:
    strict = await world.another(second_approver=True)
    line = await Line.open(strict)
    async with portal_socket(strict.owner) as mine, portal_socket(strict.admin) as theirs:
        command = await queued(mine, line, type="restart_dhcp")
        decision = {"sessionId": line.session_id, "commandId": command["id"], "approved": True}
        assert (await refused(mine, "approve", decision))["code"] == "SELF_APPROVAL"
        await theirs.ask("approve", decision, answer="approval_recorded")


async def test_of_many_decisions_at_once_one_counts(line: Line) -> None:
    command = await line.submit("restart_dhcp")

    async def decide(customer: CustomerClient, *, approved: bool) -> str:
        decision = {"sessionId": line.session_id, "commandId": command["id"], "approved": approved, "reason": "r"}
        async with portal_socket(customer) as socket:
            await socket.send("approve", decision, "d")
            return str((await socket.receive())["type"])

    people = (line.world.owner, line.world.admin)
    answers = await asyncio.gather(*(decide(people[n % 2], approved=n % 3 > 0) for n in range(8)))
    assert sorted(answers) == ["approval_recorded"] + ["error"] * 7


async def test_a_failure_that_nobody_foresaw_is_told_as_such_and_the_socket_goes_on(
    line: Line, database: Database
) -> None:
    broken = "alter table aizen.audit add constraint full_up check (false) not valid"
    claimed = await line.claimed()
    async with portal_socket(line.world.owner) as portal, device_socket(line.device, "?prefetch=0") as device:
        await database.execute(broken)
        with capture_logs():
            order = {"sessionId": line.session_id, "type": "ping"}
            errors = [
                await refused(portal, "send_command", order),
                await refused(device, "command_result", result_of(claimed)),
            ]
        for error in errors:
            assert error["code"] == "INTERNAL_ERROR"
            assert "aizen" not in str(error)
        await database.execute("alter table aizen.audit drop constraint full_up")
        await queued(portal, line)
        assert (await finish(device, claimed))["duplicate"] is False


async def test_the_audit_log_knows_the_socket_as_it_knows_rest(line: Line) -> None:
    async with portal_socket(line.world.owner) as socket:
        order = {"sessionId": line.session_id, "type": "ping"}
        await socket.send("send_command", order, "from-the-socket")
        command = (await socket.expect("command_queued"))["payload"]["command"]
    records = expect(await line.world.owner.get(f"{API}/customer/audit"), 200)["records"]
    (record,) = [found for found in records if found["resourceId"] == command["id"]]
    assert record["action"] == "command.submitted"
    assert record["actor"] == line.world.owner.user_id
    assert record["requestId"] == "from-the-socket"
    assert record["ip"] == "127.0.0.1"
    assert record["userAgent"].startswith("Python")
