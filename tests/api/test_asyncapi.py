"""The AsyncAPI document is well formed, complete, and says what sockets really carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs
import pytest

from aizen_gateway.api.asyncapi import SOCKETS as DOCUMENTED
from aizen_gateway.api.asyncapi import asyncapi_document
from aizen_gateway.api.asyncapi_text import EXAMPLES
from aizen_gateway.api.openapi import component_name
from aizen_gateway.api.routes import SOCKETS
from aizen_gateway.api.schemas.loading import load
from aizen_gateway.api.sockets.customer import CUSTOMER_MESSAGES
from aizen_gateway.api.sockets.device import DEVICE_MESSAGES
from aizen_gateway.api.sockets.pushes import CUSTOMER_PUSHES, DEVICE_PUSHES
from aizen_gateway.realtime.close_codes import CLOSE_MEANINGS, CloseCode
from tests.support.asyncapi_shape import ASYNCAPI_SHAPE
from tests.support.clients import World, expect, token_for
from tests.support.sockets import SocketClient, open_socket

from .bare import bare_app, serving

DRAFT = "http://json-schema.org/draft-07/schema#"
TABLES = {"device": (DEVICE_MESSAGES, DEVICE_PUSHES), "customer": (CUSTOMER_MESSAGES, CUSTOMER_PUSHES)}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi_document("1.2.3")


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolved(document: dict[str, Any], reference: str) -> Any:
    """What a reference leads to, through further ones."""
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return resolved(document, found["$ref"]) if "$ref" in found else found


def names(document: dict[str, Any], socket: str, side: str) -> set[str]:
    """The types of the messages that go to `side` on `socket`."""
    prefix = f"{socket}.to{side}."
    return {said["name"] for name, said in document["components"]["messages"].items() if name.startswith(prefix)}


def test_the_document_has_the_shape_of_asyncapi(document: dict[str, Any]) -> None:
    problems = jsonschema_rs.Draft7Validator(ASYNCAPI_SHAPE).iter_errors(document)
    assert [(problem.message, list(problem.instance_path)) for problem in problems] == []


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        assert resolved(document, reference)


def test_every_payload_is_json_schema_of_draft_07(document: dict[str, Any]) -> None:
    shapes = document["components"]["schemas"]
    payloads = [message["payload"] for message in document["components"]["messages"].values()]
    bindings = [channel["bindings"]["ws"] for channel in document["channels"].values()]
    for schema in (
        *shapes.values(),
        *payloads,
        *(binding[part] for binding in bindings for part in ("query", "headers")),
    ):
        assert jsonschema_rs.meta.is_valid({"$schema": DRAFT, **schema})
    # Keywords that draft 07 does not know would be passed over in silence.
    assert not {"'example'", "'dependentRequired'", "'nullable'", "'$defs'"} & set(
        repr(shapes).replace(":", " ").split()
    )


def test_every_type_of_the_tables_is_documented_and_no_other(document: dict[str, Any]) -> None:
    for socket, (questions, pushes) in TABLES.items():
        assert names(document, socket, "Gateway") == {*questions, "ping"}
        client = "Device" if socket == "device" else "Portal"
        answers = {kind.answer for kind in questions.values() if kind.answer}
        assert names(document, socket, client) == {*pushes, *answers, "pong", "error"}


def test_every_question_that_is_answered_has_the_payload_of_its_answer() -> None:
    for questions, _ in TABLES.values():
        for kind in questions.values():
            assert (kind.view is not None) == bool(kind.answer)


def test_every_address_is_a_channel_and_every_channel_an_address(document: dict[str, Any]) -> None:
    assert {channel["address"] for channel in document["channels"].values()} == set(SOCKETS)
    for socket in DOCUMENTED:
        channel, alias = document["channels"][socket.name], document["channels"][f"{socket.name}Alias"]
        assert SOCKETS[channel["address"]] is SOCKETS[alias["address"]]
        assert channel["messages"] == alias["messages"]


def test_every_message_is_said_in_an_operation_or_answers_one(document: dict[str, Any]) -> None:
    used: set[str] = set()
    for operation in document["operations"].values():
        used |= {reference["$ref"] for reference in operation["messages"]}
        used |= {reference["$ref"] for reference in operation.get("reply", {}).get("messages", [])}
    for socket in TABLES:
        said = document["channels"][socket]["messages"]
        assert used >= {f"#/channels/{socket}/messages/{name}" for name in said}


def test_every_close_code_has_its_meaning(document: dict[str, Any]) -> None:
    assert set(CLOSE_MEANINGS) == set(CloseCode)
    assert document["x-close-codes"] == {str(int(code)): CLOSE_MEANINGS[code] for code in CloseCode}
    for code in CloseCode:
        assert f"| {int(code)} | {CLOSE_MEANINGS[code]} |" in document["info"]["description"]


def test_the_examples_are_valid_here_and_there(document: dict[str, Any]) -> None:
    kinds = [kind for questions, _ in TABLES.values() for kind in questions.values()]
    assert set(EXAMPLES) <= {component_name(kind.schema) for kind in kinds}
    for kind in kinds:
        if (example := EXAMPLES.get(component_name(kind.schema))) is not None:
            load(kind.schema, example)
    for message in document["components"]["messages"].values():
        for shown in message.get("examples", []):
            assert problems(document, message, shown["payload"]) == []


async def test_the_document_is_served_and_the_page_tells_of_it(document: dict[str, Any]) -> None:
    async with serving(bare_app()) as client:
        response = await client.get("/asyncapi.json")
        assert (response.content_type, await response.json()) == ("application/json", document)
        assert 'href="/asyncapi.json"' in await (await client.get("/docs")).text()


def strict(schema: Any) -> Any:
    """The same schema for a reader that bears nothing it was not told of: what is sent is documented to the end."""
    if isinstance(schema, dict):
        inner = {name: strict(value) for name, value in schema.items()}
        if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
            inner["additionalProperties"] = False
        return inner
    return [strict(one) for one in schema] if isinstance(schema, list) else schema


def problems(
    document: dict[str, Any], message: Mapping[str, Any], frame: Mapping[str, Any], *, sent_by_us: bool = False
) -> list[str]:
    """Why a frame is not the message; what the gateway sends has nothing that is not documented."""
    schema = {**message["payload"], "components": {"schemas": document["components"]["schemas"]}}
    if sent_by_us:
        schema = strict(schema)
    validator = jsonschema_rs.Draft7Validator(schema, validate_formats=True)
    return [f"{error.message} at {list(error.instance_path)}" for error in validator.iter_errors(frame)]


class Tape:
    """Checks every frame of a socket against the document as it passes, and remembers what types there were."""

    def __init__(self, document: dict[str, Any], socket: str) -> None:
        self._document = document
        self._socket = socket
        self._operations: dict[str, dict[str, Any]] = {}
        self.said: set[str] = set()
        self.heard: set[str] = set()

    def says(self, frame: dict[str, Any]) -> None:
        operation = self._document["operations"][f"{self._socket}.receive.{frame['type']}"]
        (message,) = operation["messages"]
        if "wrong" not in frame["payload"]:
            assert problems(self._document, resolved(self._document, message["$ref"]), frame) == []
        self._operations[frame["requestId"]] = operation
        self.said.add(frame["type"])

    def hears(self, frame: dict[str, Any]) -> None:
        known = self._document["channels"][self._socket]["messages"].values()
        operation = self._operations.get(str(frame.get("requestId")))
        # An event carries the id of what caused it as well, but it answers nothing.
        if operation is not None and "eventId" not in frame:
            known = operation["reply"]["messages"]
        found = [resolved(self._document, one["$ref"]) for one in known]
        meant = [message for message in found if message["name"] == frame["type"]]
        told = [problems(self._document, message, frame, sent_by_us=True) for message in meant]
        assert [] in told, (frame, told)
        self.heard.add(frame["type"])


class TapedSocket(SocketClient):
    """A socket whose frames are checked."""

    tape: Tape

    async def send(self, type: str, payload: Mapping[str, Any] | None = None, request_id: str | None = None) -> None:
        self.tape.says({"type": type, "requestId": str(request_id), "payload": dict(payload or {})})
        await super().send(type, payload, request_id)

    async def receive(self) -> dict[str, Any]:
        frame = await super().receive()
        self.tape.hears(frame)
        return frame


def taped(socket: SocketClient, tape: Tape) -> TapedSocket:
    checked = TapedSocket(socket.ws)
    checked.tape = tape
    return checked


async def test_frames_of_a_device_are_as_documented(document: dict[str, Any], world: World) -> None:
    device = await world.device()
    session = (await world.owner.open_session(device.device_id))["id"]
    commands = [await world.owner.submit(session) for _ in range(4)]
    tape = Tape(document, "device")
    headers = {"X-Device-Token": device.token}
    async with open_socket(world.http, f"{world.url}/ws/device?prefetch=2", headers=headers) as plain:
        socket = taped(plain, tape)
        await socket.expect("connected")
        await socket.send("connected", {"agent": "old"}, "hello")
        await socket.ask("ping", answer="pong")
        beat = {"status": "online", "metrics": {"cpu": 1.5}, "diagnostics": [1], "timestamp": "2026-01-02T03:04:05Z"}
        await socket.ask("heartbeat", beat, answer="heartbeat_ack")
        await socket.ask("status", {"status": "busy"}, answer="ack")
        first, second = [(await socket.expect("command"))["payload"] for _ in range(2)]
        claim = {"commandId": first["id"], "claimToken": first["claimToken"]}
        await socket.ask("extend", {**claim, "extensionMs": 60_000}, answer="ack")
        result = {"status": "success", "executedAt": "2026-01-02T03:04:05Z", "duration": 3, "result": {"a": None}}
        await socket.ask("command_result", {**claim, **result}, answer="ack")
        claim = {"commandId": second["id"], "claimToken": second["claimToken"]}
        await socket.ask("release", claim, answer="ack")
        third = (await socket.expect("command"))["payload"]
        expect(await world.owner.cancel(next(one for one in commands if one["id"] == third["id"]), reason="no"), 200)
        await socket.expect("command_canceled")
        claim = {"commandId": third["id"], "claimToken": third["claimToken"]}
        assert (await socket.ask("extend", claim, answer="ack"))["cancelRequested"] is True
        await socket.ask("claim", {"limit": 10, "visibilityTimeout": 1000}, answer="commands")
        await socket.ask("extend", {"wrong": 1}, answer="error")
        await socket.ask("release", {"commandId": first["id"], "claimToken": "old"}, answer="error")
    # No setting changes while this version runs.
    assert tape.heard == names(document, "device", "Device") - {"config_update"}
    assert tape.said == names(document, "device", "Gateway")


async def test_frames_of_a_portal_are_as_documented(document: dict[str, Any], world: World) -> None:
    device = await world.device()
    tape = Tape(document, "customer")
    async with open_socket(world.http, f"{world.url}/ws/customer") as plain:
        portal = taped(plain, tape)
        await portal.ask("auth", {"token": token_for(world.owner.user_id, ttl=30)}, answer="auth_success")
        await portal.expect("connected")
        await portal.expect("auth_expiring")
        await portal.ask("auth", {"token": token_for(world.owner.user_id)}, answer="auth_success")
        await portal.ask("ping", answer="pong")
        await portal.ask("join_rooms", answer="rooms_joined")
        await device.heartbeat()
        await portal.expect("device_status")
        await portal.ask("subscribe", {"deviceId": device.device_id, "lastEventId": "1-1"}, answer="subscribed")
        asked = expect(
            await world.service.post(
                "/api/v1/customer/sessions", {"deviceId": device.device_id, "type": "remediation", "description": "x"}
            ),
            201,
        )["session"]["id"]
        assert "session" in (await portal.expect("approval_requested"))["payload"]
        await portal.ask("approve", {"sessionId": asked, "approved": True}, answer="approval_recorded")
        await portal.expect("session_update")
        wanted = {"sessionId": asked, "type": "restart_dhcp", "parameters": {"port": 1}, "idempotencyKey": "once"}
        command = (await portal.ask("send_command", wanted, answer="command_queued"))["command"]
        assert "command" in (await portal.expect("approval_requested"))["payload"]
        decision = {"sessionId": asked, "commandId": command["id"], "digest": command["digest"]}
        await portal.ask("approve", {**decision, "approved": True, "reason": "go"}, answer="approval_recorded")
        await portal.ask("approve", {**decision, "approved": False, "reason": "no"}, answer="error")
        (claimed,) = await device.claim()
        expect(await device.report(claimed, "failure", output="text", error="why", result={"deep": [1]}), 200)
        states: list[str] = []
        while "failed" not in states:
            states.append((await portal.expect("command_update"))["payload"]["command"]["status"])
        expect(await world.owner.post(f"/api/v1/customer/sessions/{asked}/close", {}), 200)
        while (await portal.expect("session_update"))["payload"]["session"]["status"] != "completed":
            pass
        await portal.ask("unsubscribe", {"deviceId": device.device_id}, answer="unsubscribed")
        await portal.ask("subscribe", {"wrong": 1}, answer="error")
    assert tape.heard == names(document, "customer", "Portal")
    assert tape.said == names(document, "customer", "Gateway")
