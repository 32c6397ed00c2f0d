"""The AsyncAPI document, made from the tables and schemas that the sockets work with: it cannot tell otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from ..domain.values import REQUEST_ID
from ..realtime.close_codes import CLOSE_MEANINGS
from .asyncapi_text import ALIAS, CUSTOMER, DESCRIPTION, DEVICE, EXAMPLES, SECURITY_SCHEMES
from .openapi import component_name, without_null_default
from .sockets.customer import CUSTOMER_MESSAGES
from .sockets.device import DEVICE_MESSAGES
from .sockets.handshake import SUBPROTOCOL
from .sockets.messages import Kind
from .sockets.pushes import CUSTOMER_PUSHES, DEVICE_PUSHES, ERROR, PONG, Push

Json = dict[str, Any]

_PING = "Ask whether the gateway is there"
_REQUEST_ID = {"type": "string", "maxLength": 128}
_PREFETCH = {
    "type": "integer",
    "minimum": 0,
    "maximum": 10,
    "default": 1,
    "description": "How many commands are leased and pushed ahead; 0 is pull only.",
}
_VISIBILITY_TIMEOUT = {
    "type": "integer",
    "minimum": 1000,
    "maximum": 3_600_000,
    "default": 300_000,
    "description": "The lease of what is pushed, in milliseconds.",
}


@dataclass(frozen=True, slots=True)
class Socket:
    """One of the two sockets: where it is, who calls it, and both sides of what is said on it."""

    name: str
    client: str
    address: str
    alias: str
    description: str
    questions: Mapping[str, Kind]
    pushes: Mapping[str, Push]
    security: tuple[str, ...]
    headers: tuple[str, ...]
    query: Mapping[str, Json]

    def question(self, type: str) -> str:
        """The name of a message from the client, among the document's messages."""
        return f"{self.name}.toGateway.{type}"

    def push(self, type: str) -> str:
        """The name of a message that the gateway sends by itself."""
        return f"{self.name}.to{self.client}.{type}"

    def answer(self, question: str, kind: Kind) -> str:
        """The name of the answer to a message; `ack` has a payload of its own for every question."""
        name = self.push(kind.answer)
        return f"{name}.{question}" if kind.answer == "ack" else name


SOCKETS = (
    Socket(
        "device",
        "Device",
        "/ws/device",
        "/api/v1/device/ws",
        DEVICE,
        DEVICE_MESSAGES,
        DEVICE_PUSHES,
        ("deviceToken", "deviceSession", "deviceBearer", "socketProtocol", "socketToken"),
        ("X-Device-Token", "X-Device-Session", "Authorization"),
        {"prefetch": _PREFETCH, "visibilityTimeout": _VISIBILITY_TIMEOUT},
    ),
    Socket(
        "customer",
        "Portal",
        "/ws/customer",
        "/api/v1/customer/ws",
        CUSTOMER,
        CUSTOMER_MESSAGES,
        CUSTOMER_PUSHES,
        ("customerToken", "serviceToken", "socketProtocol", "socketToken"),
        ("Authorization", "X-Customer-ID", "Origin"),
        {},
    ),
)


def asyncapi_document(version: str) -> Json:
    """Return the AsyncAPI 3.0 document for this version of the gateway."""
    codes = "".join(f"| {int(code)} | {meaning} |\n" for code, meaning in CLOSE_MEANINGS.items())
    shapes = _Shapes()
    messages = {name: message for socket in SOCKETS for name, message in _messages(socket, shapes)}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Aizen gateway: sockets", "version": version, "description": DESCRIPTION + codes},
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {
                "host": "{host}",
                "protocol": "wss",
                "variables": {"host": {"default": "localhost", "description": "Where the gateway is reached."}},
            },
            "local": {"host": "127.0.0.1:3001", "protocol": "ws", "description": "For trying things out."},
        },
        "channels": {name: channel for socket in SOCKETS for name, channel in _channels(socket, messages)},
        "operations": {name: operation for socket in SOCKETS for name, operation in _operations(socket)},
        "components": {
            "messages": messages,
            "schemas": shapes.components(),
            "securitySchemes": {name: dict(scheme) for name, scheme in SECURITY_SCHEMES.items()},
            "correlationIds": {
                "requestId": {
                    "description": "The question's id is on its answer.",
                    "location": "$message.payload#/requestId",
                }
            },
        },
        "x-close-codes": {str(int(code)): meaning for code, meaning in CLOSE_MEANINGS.items()},
    }


class _Shapes:
    """The schemas of payloads, each once, in the dialect of AsyncAPI: JSON Schema of draft 07."""

    def __init__(self) -> None:
        plugin = MarshmallowPlugin(schema_name_resolver=component_name)
        self._spec = APISpec(title="", version="", openapi_version="3.1.0", plugins=[plugin])
        assert plugin.converter is not None
        plugin.converter.add_attribute_function(without_null_default)  # type: ignore[no-untyped-call]
        self._rules: dict[str, Mapping[str, Any]] = {}

    def reference(self, schema: Schema) -> Json:
        """A reference to the shape of `schema`."""
        name = component_name(schema)
        if name not in self._spec.components.schemas:
            self._spec.components.schema(name, schema=schema)
            self._rules[name] = getattr(schema, "rules", {})
        return {"$ref": f"#/components/schemas/{name}"}

    def components(self) -> Json:
        """All shapes that were referred to, with those that they are made of."""
        found: Json = self._spec.to_dict()["components"]["schemas"]
        return {name: _draft_07({**schema, **self._rules.get(name, {})}) for name, schema in found.items()}


def _draft_07(schema: Json) -> Json:
    """A schema as OpenAPI 3.1 has it, with the keywords that changed their names since."""
    translated: Json = {}
    for key, value in schema.items():
        if key == "example":
            translated["examples"] = [value]
        elif key == "dependentRequired":
            translated["dependencies"] = value
        elif key == "properties":
            translated[key] = {name: _draft_07(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            translated[key] = _draft_07(value)
        else:
            translated[key] = value
    return translated


def _messages(socket: Socket, shapes: _Shapes) -> Iterator[tuple[str, Json]]:
    """Everything that may be said on `socket`, from the client first."""
    yield socket.question("ping"), _message("ping", _PING, _frame("ping", {"type": "object"}, needed=False))
    for type, kind in socket.questions.items():
        needed = any(field.required for field in kind.schema.fields.values())
        message = _message(type, kind.summary, _frame(type, shapes.reference(kind.schema), needed=needed))
        example = EXAMPLES.get(component_name(kind.schema))
        if example is not None:
            message["examples"] = [{"payload": {"type": type, "requestId": "42", "payload": example}}]
        yield socket.question(type), message
    for type, push in {**socket.pushes, "pong": PONG, "error": ERROR}.items():
        frame = _frame(type, shapes.reference(push.view), event=push.event)
        yield socket.push(type), _message(type, push.summary, frame)
    for type, kind in socket.questions.items():
        if kind.view is not None:
            frame = _frame(kind.answer, shapes.reference(kind.view))
            yield socket.answer(type, kind), _message(kind.answer, f"The answer to `{type}`", frame)


def _message(type: str, summary: str, frame: Json) -> Json:
    correlation = {"$ref": "#/components/correlationIds/requestId"}
    return {"name": type, "summary": summary, "payload": frame, "correlationId": correlation}


def _frame(type: str, payload: Json, *, needed: bool = True, event: bool = False) -> Json:
    """The schema of a whole frame. `needed`: whether it must have its payload."""
    properties: Json = {"type": {"const": type}, "requestId": dict(_REQUEST_ID), "payload": payload}
    required = ["type", "payload"] if needed else ["type"]
    if event:
        properties["eventId"] = {"type": "string", "description": "Opaque, and increasing."}
        properties["room"] = {"type": "string", "description": "The most specific room that it belongs to."}
        required += ["eventId", "room"]
    return {"type": "object", "required": required, "properties": properties}


def _channels(socket: Socket, messages: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    said = {name: {"$ref": f"#/components/messages/{name}"} for name in messages if name.startswith(socket.name + ".")}
    bindings = {"ws": _binding(socket)}
    shared = {"messages": said, "bindings": bindings}
    yield socket.name, {"address": socket.address, "description": socket.description, **shared}
    alias = ALIAS.format(address=socket.address)
    yield f"{socket.name}Alias", {"address": socket.alias, "description": alias, **shared}


def _binding(socket: Socket) -> Json:
    """The handshake: all of its query parameters and headers may be left out, as a token can come in several ways."""
    query: Json = {
        **socket.query,
        "token": {"type": "string", "description": SECURITY_SCHEMES["socketToken"]["description"]},
    }
    headers: Json = {name: {"type": "string"} for name in socket.headers}
    headers["X-Request-ID"] = {"type": "string", "pattern": "^" + REQUEST_ID.pattern.removesuffix(r"\Z") + "$"}
    headers["Sec-WebSocket-Protocol"] = {
        "type": "string",
        "description": f"`{SUBPROTOCOL}` is selected when it is offered, else the `auth-<token>` that was.",
        "examples": [f"{SUBPROTOCOL}, auth-the-token"],
    }
    return {
        "method": "GET",
        "query": {"type": "object", "properties": query},
        "headers": {"type": "object", "properties": headers},
        "bindingVersion": "0.1.0",
    }


def _operations(socket: Socket) -> Iterator[tuple[str, Json]]:
    """As the gateway sees it: it receives what clients say, and sends what it pushes."""
    error = socket.push("error")
    yield f"{socket.name}.receive.ping", _operation(socket, "receive", _PING, "ping", socket.push("pong"))
    for type, kind in socket.questions.items():
        answers = (socket.answer(type, kind), error) if kind.view is not None else ()
        yield f"{socket.name}.receive.{type}", _operation(socket, "receive", kind.summary, type, *answers)
    for type, push in {**socket.pushes, "error": ERROR}.items():
        yield f"{socket.name}.send.{type}", _operation(socket, "send", push.summary, type)


def _operation(socket: Socket, action: str, summary: str, type: str, *answers: str) -> Json:
    channel = f"#/channels/{socket.name}"
    message = socket.question(type) if action == "receive" else socket.push(type)
    operation: Json = {
        "action": action,
        "channel": {"$ref": channel},
        "summary": summary,
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in socket.security],
        "messages": [{"$ref": f"{channel}/messages/{message}"}],
    }
    if answers:
        refs = [{"$ref": f"{channel}/messages/{name}"} for name in answers]
        operation["reply"] = {"channel": {"$ref": channel}, "messages": refs}
    return operation
