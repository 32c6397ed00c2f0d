"""The part of AsyncAPI 3.0 that the gateway's document uses, as JSON Schema: whatever else is in it is a mistake."""

from __future__ import annotations

from typing import Any

_NAME = r"^[A-Za-z0-9_.\-]+$"
_TEXT = {"type": "string", "minLength": 1}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [*required],
        "properties": {**required, **optional},
        "patternProperties": {"^x-": True},
        "additionalProperties": False,
    }


def _map(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "minProperties": 1, "propertyNames": {"pattern": _NAME}, "additionalProperties": schema}


def _reference(place: str) -> dict[str, Any]:
    return _object({"$ref": {"type": "string", "pattern": f"^#/{place}"}})


def _references(place: str) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": _reference(place)}


_SERVER = _object(
    {"host": _TEXT, "protocol": {"enum": ["ws", "wss"]}},
    description=_TEXT,
    variables=_map(_object({"default": _TEXT}, description=_TEXT)),
)
_WS_BINDING = _object(
    {
        "method": {"enum": ["GET", "POST"]},
        "query": {"type": "object", "required": ["type", "properties"], "properties": {"type": {"const": "object"}}},
        "headers": {"type": "object", "required": ["type", "properties"], "properties": {"type": {"const": "object"}}},
        "bindingVersion": {"const": "0.1.0"},
    }
)
_CHANNEL = _object(
    {
        "address": {"type": "string", "pattern": "^/"},
        "messages": _map(_reference("components/messages/")),
        "bindings": _object({"ws": _WS_BINDING}),
        "description": _TEXT,
    }
)
_OPERATION = _object(
    {
        "action": {"enum": ["send", "receive"]},
        "channel": _reference("channels/[^/]+$"),
        "summary": _TEXT,
        "messages": _references("channels/[^/]+/messages/"),
        "security": _references("components/securitySchemes/"),
    },
    reply=_object(
        {"channel": _reference("channels/[^/]+$"), "messages": _references("channels/[^/]+/messages/")},
    ),
)
_MESSAGE = _object(
    {
        "name": _TEXT,
        "summary": _TEXT,
        "payload": {"type": "object", "required": ["type", "required", "properties"]},
        "correlationId": _reference("components/correlationIds/"),
    },
    examples={"type": "array", "minItems": 1, "items": _object({"payload": {"type": "object"}})},
)
_SECURITY = {
    "oneOf": [
        _object(
            {"type": {"const": "httpApiKey"}, "name": _TEXT, "in": {"enum": ["query", "header", "cookie"]}},
            description=_TEXT,
        ),
        _object({"type": {"const": "http"}, "scheme": {"const": "bearer"}}, bearerFormat=_TEXT, description=_TEXT),
    ]
}

ASYNCAPI_SHAPE: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    **_object(
        {
            "asyncapi": {"const": "3.0.0"},
            "info": _object({"title": _TEXT, "version": _TEXT, "description": _TEXT}),
            "defaultContentType": {"const": "application/json"},
            "servers": _map(_SERVER),
            "channels": _map(_CHANNEL),
            "operations": _map(_OPERATION),
            "components": _object(
                {
                    "messages": _map(_MESSAGE),
                    "schemas": _map({"type": "object"}),
                    "securitySchemes": _map(_SECURITY),
                    "correlationIds": _map(
                        _object(
                            {"location": {"type": "string", "pattern": r"^\$message\.payload#/"}}, description=_TEXT
                        )
                    ),
                }
            ),
        }
    ),
}
