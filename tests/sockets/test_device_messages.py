"""What a device may say on its socket, and what it is answered: as REST does, with the same codes (section 6)."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import aiohttp

from tests.support.clients import World, expect
from tests.support.gateway import StartWorld
from tests.support.inside import comes_to
from tests.support.line import Line
from tests.support.pushes import finish, pushed, result_of
from tests.support.raw_socket import Opcode, frame_of, raw_device, text_of
from tests.support.sockets import SocketClient, device_socket
from tests.support.waiting import TIME

_LIMIT = 256 * 1024


async def code_of(socket: SocketClient, type: str, payload: Any, request_id: str = "asked-1") -> str:
    """Send a message that must fail, and return the error's code."""
    await socket.ws.send_str(json.dumps({"type": type, "requestId": request_id, "payload": payload}))
    frame = await socket.expect("error")
    assert frame["requestId"] == request_id
    assert frame["payload"].keys() <= {"code", "message", "details"}
    assert frame["payload"]["message"]
    return str(frame["payload"]["code"])


async def test_a_heartbeat_is_acknowledged_and_shown(line: Line) -> None:
    for _ in range(2):
        await line.submit()
    async with device_socket(line.device, "?prefetch=0") as socket:
        body = {"status": "error", "metrics": {"cpu": 99.5}, "diagnostics": ["hot"], "firmware": "unknown field"}
        answer = await socket.ask("heartbeat", body, answer="heartbeat_ack")
        assert answer.keys() == {"timestamp", "nextHeartbeat", "pendingCommands"}
        assert TIME.fullmatch(answer["timestamp"])
        assert (answer["nextHeartbeat"], answer["pendingCommands"]) == (30_000, 2)
        seen = await line.world.owner.status(line.device.device_id)
        assert (seen["status"], seen["connection"]) == ("error", "websocket")
        assert (seen["metrics"], seen["diagnostics"]) == ({"cpu": 99.5}, ["hot"])
        assert seen["lastHeartbeat"] == answer["timestamp"]


async def test_a_status_is_acknowledged_and_shown(line: Line) -> None:
    async with device_socket(line.device) as socket:
        await socket.send("status", {"status": "error", "anything": {"else": 1}}, "s-1")
        frame = await socket.expect("ack")
        assert frame["requestId"] == "s-1"
        assert (await line.world.owner.status(line.device.device_id))["status"] == "error"
        assert await code_of(socket, "status", {}) == "INVALID_REQUEST"


async def test_extend_release_and_result_are_acknowledged_with_the_answer_of_rest(line: Line) -> None:
    await line.submit()
    following = await line.submit(priority=9)
    async with device_socket(line.device) as socket:
        claimed = await pushed(socket)
        held = {"commandId": claimed["id"], "claimToken": claimed["claimToken"]}
        extended = await socket.ask("extend", {**held, "extensionMs": 200_000}, answer="ack")
        assert extended.keys() == {"success", "visibleUntil"}
        assert extended["visibleUntil"] != claimed["visibleUntil"]
        assert await socket.ask("release", held, answer="ack") == {"success": True}
        claimed = await pushed(socket)
        result = result_of(claimed, "failure", output="out", error="err", result={"loss": 1})
        answer = await socket.ask("command_result", result, answer="ack")
        assert answer == {
            "success": True,
            "status": "failed",
            "duplicate": False,
            "late": False,
            "nextCommand": {"id": following["id"]},
        }
        # The same again, over either way, changes nothing.
        assert (await socket.ask("command_result", result, answer="ack"))["duplicate"] is True
        fields = {"output": "out", "error": "err", "result": {"loss": 1}}
        assert expect(await line.device.report(claimed, "failure", **fields), 200)["duplicate"] is True
        stored = (await line.seen(claimed))["result"]
        assert (stored["status"], stored["output"], stored["error"]) == ("failure", "out", "err")


async def test_the_errors_are_those_of_rest(line: Line) -> None:
    for _ in range(2):
        await line.submit()
    async with device_socket(line.device, "?prefetch=2") as socket:
        claimed, stopped = await pushed(socket), await pushed(socket)
        held = {"commandId": claimed["id"], "claimToken": claimed["claimToken"]}
        unknown = {"commandId": str(uuid4()), "claimToken": "x"}
        for kind in ("extend", "release", "command_result"):
            rest = result_of(claimed) if kind == "command_result" else {}
            assert await code_of(socket, kind, {**rest, **unknown}) == "COMMAND_NOT_FOUND"
            assert await code_of(socket, kind, {**rest, **unknown, "commandId": "no-uuid"}) == "COMMAND_NOT_FOUND"
            assert await code_of(socket, kind, {**rest, **held, "claimToken": "x"}) == "INVALID_CLAIM_TOKEN"
            assert await code_of(socket, kind, {"claimToken": "x"}) == "INVALID_REQUEST"
        assert await code_of(socket, "extend", {**held, "extensionMs": 999}) == "INVALID_REQUEST"
        assert await code_of(socket, "claim", {"limit": 11}) == "INVALID_REQUEST"
        assert await code_of(socket, "claim", {"visibilityTimeout": 999}) == "INVALID_REQUEST"
        assert await code_of(socket, "heartbeat", {"status": "sleeping"}) == "INVALID_REQUEST"
        await finish(socket, claimed)
        assert await code_of(socket, "extend", held) == "COMMAND_ALREADY_COMPLETED"
        assert await code_of(socket, "release", held) == "COMMAND_ALREADY_COMPLETED"
        assert await code_of(socket, "command_result", result_of(claimed, "failure")) == "COMMAND_ALREADY_COMPLETED"
        expect(await line.world.owner.cancel({**stopped, "sessionId": line.session_id}, force=True), 200)
        assert await code_of(socket, "command_result", result_of(stopped)) == "COMMAND_CANCELED"
        # After all of it the socket is as good as before.
        assert (await socket.ask("ping", answer="pong")) == {}


async def test_a_claim_over_the_socket_waits_for_nothing(line: Line) -> None:
    async with device_socket(line.device, "?prefetch=0") as socket:
        # Far longer than this test waits for an answer; a device's unknown fields are ignored.
        assert await socket.ask("claim", {"waitMs": 30_000}, answer="commands") == {"commands": []}


async def test_a_command_of_another_device_is_answered_like_none(line: Line) -> None:
    other = await Line.open(line.world)
    theirs = await other.claimed()
    async with device_socket(line.device) as socket:
        assert await code_of(socket, "command_result", result_of(theirs)) == "COMMAND_NOT_FOUND"
    assert (await other.seen(theirs))["status"] == "claimed"


async def test_an_error_names_the_fields_as_rest_does(world: World) -> None:
    async with device_socket(await world.device()) as socket:
        await socket.send("command_result", {"commandId": str(uuid4()), "status": "done"}, "r-1")
        payload = (await socket.expect("error"))["payload"]
        assert payload["details"]["fields"].keys() == {"claimToken", "status", "executedAt", "duration"}


async def test_a_type_that_is_not_known_is_an_error_and_connected_is_ignored(world: World) -> None:
    async with device_socket(await world.device()) as socket:
        for type_ in ("subscribe", "", "HEARTBEAT", "ping ", "x" * 1000):
            assert await code_of(socket, type_, {}) == "INVALID_REQUEST"
        no_types: list[dict[str, Any]] = [{"payload": {}}, {"type": 5}, {"type": None}, {"type": ["ping"]}]
        for strange in no_types:
            await socket.ws.send_str(json.dumps(strange))
            assert (await socket.expect("error"))["payload"]["code"] == "INVALID_REQUEST"
        for anything in ({"deviceId": "x", "at": [1]}, None, "text", [1, 2]):
            await socket.ws.send_str(json.dumps({"type": "connected", "requestId": "c-1", "payload": anything}))
        assert await socket.ask("ping", answer="pong") == {}
        assert socket.earlier == []


async def test_a_payload_that_is_no_object_is_an_error_and_none_is_empty(line: Line) -> None:
    await line.submit()
    async with device_socket(line.device, "?prefetch=0") as socket:
        for payload in ("text", [1], 5, True):
            assert await code_of(socket, "claim", payload) == "INVALID_REQUEST"
        await socket.ws.send_str('{"type": "claim", "requestId": "1", "payload": null}')
        assert len((await socket.expect("commands"))["payload"]["commands"]) == 1
        await socket.ws.send_str('{"type": "claim", "requestId": "2"}')
        assert (await socket.expect("commands"))["requestId"] == "2"


async def test_the_request_id_is_echoed_when_there_is_one(world: World) -> None:
    async with device_socket(await world.device()) as socket:
        for request_id in ("a", "with spaces and ünïcode", "x" * 128):
            await socket.send("heartbeat", {"status": "online"}, request_id)
            assert (await socket.expect("heartbeat_ack"))["requestId"] == request_id
        for none in ({}, {"requestId": None}, {"requestId": 5}, {"requestId": "x" * 129}):
            await socket.ws.send_str(json.dumps({"type": "ping", **none}))
            assert "requestId" not in await socket.expect("pong")


async def test_the_request_id_reaches_the_portals_and_the_audit_log(line: Line) -> None:
    async with device_socket(line.device) as socket:
        await line.submit()
        claimed = await pushed(socket)
        await socket.send("command_result", result_of(claimed), "from-the-device-7")
        await socket.expect("ack")
    audit = expect(await line.world.owner.get("/api/v1/customer/audit?action=command.succeeded"), 200)
    (record,) = audit["records"]
    assert (record["requestId"], record["actor"]) == ("from-the-device-7", line.device.device_id)


async def test_messages_are_answered_in_their_order(world: World) -> None:
    device = await world.device()
    async with device_socket(device) as socket:
        kinds = ["heartbeat", "claim", "status"] * 10
        for number, kind in enumerate(kinds):
            await socket.send(kind, {"status": "online"}, str(number))
        frames = [await socket.receive() for _ in kinds]
    assert [frame["requestId"] for frame in frames] == [str(number) for number in range(len(kinds))]


async def test_a_ping_frame_is_answered_by_its_pong(world: World) -> None:
    async with raw_device(await world.device()) as socket:
        assert (await socket.message())["type"] == "connected"
        await socket.send(frame_of(Opcode.PING, b"are you there"), frame_of(Opcode.PING))
        assert await socket.receive() == (Opcode.PONG, b"are you there")
        assert await socket.receive() == (Opcode.PONG, b"")


async def test_malformed_json_is_an_error_and_the_third_time_the_end(world: World) -> None:
    device = await world.device()
    for bad in ('{"type": ', "[]", "5", "null", '"text"', '{"a": 1, "a": 2}', '{"a": NaN}', ""):
        async with device_socket(device) as socket:
            for _ in range(2):
                await socket.ws.send_str(bad)
                frame = await socket.expect("error")
                assert frame["payload"]["code"] == "INVALID_REQUEST"
                assert await socket.ask("ping", answer="pong") == {}
            await socket.ws.send_str(bad)
            assert (await socket.expect("error"))["payload"]["code"] == "INVALID_REQUEST"
            assert await socket.closed() == 1007


async def test_frames_that_are_no_text_or_too_big_close_the_socket(world: World) -> None:
    device = await world.device()
    cases = [
        (frame_of(Opcode.BINARY, b"{}"), 1003),
        (frame_of(Opcode.TEXT, b'{"type": "\xff"}'), 1007),
        (frame_of(Opcode.TEXT, b"x" * (_LIMIT + 1)), 1009),
        (frame_of(Opcode.TEXT, b"x" * _LIMIT, fin=False) + frame_of(Opcode.CONTINUATION, b"x"), 1009),
        (frame_of(Opcode.CONTINUATION, b"x"), 1002),
        (b"\xf1\x80" + bytes(4), 1002),
    ]
    for data, code in cases:
        async with raw_device(device) as socket:
            await socket.send(data)
            assert await socket.closed() == code


async def test_a_frame_of_just_the_limit_is_taken_and_fragments_are_joined(world: World) -> None:
    device = await world.device()
    message = b'{"type": "ping", "requestId": "%s"}'
    async with raw_device(device) as socket:
        await socket.send(frame_of(Opcode.TEXT, message % b"whole" + b" " * (_LIMIT - len(message % b"whole"))))
        assert (await socket.message())["type"] == "connected"
        assert (await socket.message())["requestId"] == "whole"
        # In pieces, cut within a character, with a control frame between, a byte at a time.
        text = message % "älter".encode()
        pieces = [text[:32], text[32:33], b"", text[33:]]
        data = frame_of(Opcode.TEXT, pieces[0], fin=False) + frame_of(Opcode.PING, b"between")
        data += b"".join(frame_of(Opcode.CONTINUATION, piece, fin=False) for piece in pieces[1:-1])
        data += frame_of(Opcode.CONTINUATION, pieces[-1])
        for index in range(len(data)):
            await socket.send(data[index : index + 1])
        assert await socket.receive() == (Opcode.PONG, b"between")
        assert (await socket.message())["requestId"] == "älter"


async def test_more_messages_than_allowed_close_the_socket(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_SOCKET="5")
    device = await world.device()
    async with device_socket(device) as socket:
        for _ in range(6):
            await socket.send("ping")
        assert await socket.closed() == 4429
        assert [frame["type"] for frame in socket.earlier] == ["pong"] * 5
    # Pings have an allowance of their own.
    async with raw_device(device) as raw:
        await raw.send(*(frame_of(Opcode.PING) for _ in range(5)), *(text_of("ping") for _ in range(5)))
        assert (await raw.message())["type"] == "connected"
        assert [(await raw.message())["type"] for _ in range(5)] == ["pong"] * 5
        await raw.send(frame_of(Opcode.PING))
        assert await raw.closed() == 4429
    # Each socket has its own.
    async with device_socket(device) as socket:
        assert await socket.ask("ping", answer="pong") == {}


async def test_what_was_said_before_leaving_is_done(line: Line) -> None:
    await line.submit()
    async with raw_device(line.device) as socket:
        assert (await socket.message())["type"] == "connected"
        claimed = (await socket.message())["payload"]
        # In one segment with the close frame, which nobody can have read apart.
        await socket.send(text_of("heartbeat", {"status": "busy"}), text_of("command_result", result_of(claimed)))
        await socket.send(frame_of(Opcode.CLOSE, b"\x03\xe8"))
        assert await socket.closed() == 1000
    await comes_to(line.world, {**claimed, "sessionId": line.session_id}, "succeeded")


async def test_the_gateway_answers_the_close_with_the_normal_code(world: World) -> None:
    async with device_socket(await world.device()) as socket:
        await socket.ws.close(code=aiohttp.WSCloseCode.GOING_AWAY)
        assert socket.ws.close_code == 1000
