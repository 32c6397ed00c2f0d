"""The OpenAPI document, made from the route table and the schemas that check the requests: it cannot tell otherwise."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin, resolver
from marshmallow import Schema

from ..domain.errors import GatewayError
from ..domain.values import DEVICE_ID
from .endpoint import Auth, Route
from .errors import STATUS
from .openapi_text import DESCRIPTION, EXAMPLES, RESPONSE_HEADERS, SECURITY_SCHEMES, TAGS
from .routes import ROUTES, errors_of
from .schemas.loading import Body
from .schemas.shared_views import ErrorAnswer

_SECURITY: Mapping[Auth, list[dict[str, list[str]]]] = {
    Auth.NONE: [],
    Auth.DEVICE: [{"deviceToken": []}, {"deviceSession": []}, {"deviceBearer": []}],
    Auth.DEVICE_TOKEN: [{"deviceToken": []}, {"deviceSession": []}, {"deviceBearer": []}],
    Auth.CUSTOMER: [{"customerToken": []}, {"serviceToken": [], "customerId": []}],
}
_PATH_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "deviceId": {"type": "string", "pattern": "^" + DEVICE_ID.pattern.removesuffix(r"\Z") + "$"},
    "sessionId": {"type": "string", "format": "uuid"},
    "commandId": {"type": "string", "format": "uuid"},
}
# A header's value arrives without the spaces around it.
_PRINTABLE = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]([ -~]*[!-~])?$"}
_RETRIED = frozenset({"RATE_LIMITED", "UNAVAILABLE", "IDEMPOTENCY_IN_PROGRESS"})


def openapi_document(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document for this version of the gateway."""
    plugin = MarshmallowPlugin(schema_name_resolver=component_name)
    spec = APISpec(
        title="Aizen gateway",
        version=version,
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": DESCRIPTION},
        tags=TAGS,
        servers=[{"url": "/"}],
    )
    assert plugin.converter is not None
    plugin.converter.add_attribute_function(without_null_default)  # type: ignore[no-untyped-call]
    spec.components.schema("ErrorAnswer", schema=ErrorAnswer())
    for name, scheme in SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, dict(scheme))
    for name, header in RESPONSE_HEADERS.items():
        spec.components.header(name, dict(header))
    request_id = {"schema": {"type": "string"}, "description": "Comes back when it is 1-128 of `A-Za-z0-9._:-`."}
    spec.components.parameter("X-Request-ID", "header", request_id)
    for code in sorted({error.code for route in ROUTES for error in errors_of(route)} | {"INTERNAL_ERROR"}):
        spec.components.example(code, {"value": _error_example(code)})
    for route in ROUTES:
        spec.path(path=route.path, operations={route.method.lower(): _operation(route)})
    document: dict[str, Any] = spec.to_dict()
    for name, rules in _rules():
        document["components"]["schemas"][name] |= rules
    return document


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.tag],
        "security": _SECURITY[route.auth],
        "parameters": list(_parameters(route)),
        "responses": _responses(route),
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        content: dict[str, Any] = {"schema": route.body}
        if (example := EXAMPLES.get(type(route.body).__name__)) is not None:
            content["example"] = example
        required = any(field.required for field in route.body.fields.values())
        operation["requestBody"] = {"required": required, "content": {"application/json": content}}
    return operation


def _parameters(route: Route) -> Iterator[dict[str, Any] | str]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"in": "path", "name": name, "required": True, "schema": dict(_PATH_PARAMETERS[name])}
    if route.query is not None:
        yield {"in": "query", "schema": route.query}
    for header in route.headers:
        yield {
            "in": "header",
            "name": header.name,
            "required": header.required,
            "description": header.description,
            "schema": dict(_PRINTABLE),
        }
    yield "X-Request-ID"


def _responses(route: Route) -> dict[str, Any]:
    headers = {"X-Request-ID": "X-Request-ID"}
    good: dict[str, Any] = {"description": route.summary + ".", "headers": dict(headers)}
    if route.headers:
        good["headers"]["Idempotent-Replay"] = "Idempotent-Replay"
    if route.status is not HTTPStatus.NO_CONTENT:
        kind = "object" if route.media_type == "application/json" else "string"
        content: dict[str, Any] = {"schema": route.success or {"type": kind}}
        if (example := EXAMPLES.get(type(route.success).__name__)) is not None:
            content["example"] = example
        good["content"] = {route.media_type: content}
    responses: dict[str, Any] = {str(route.status.value): good}
    for status, schema in route.others.items():
        responses[str(status.value)] = {
            "description": status.phrase,
            "headers": dict(headers),
            "content": {"application/json": {"schema": schema}},
        }
    for number, codes in sorted(_codes_by_status(errors_of(route)).items()):
        responses[str(number)] = _error_response(codes)
    return responses


def _error_response(codes: list[str]) -> dict[str, Any]:
    headers = {"X-Request-ID": "X-Request-ID"}
    if not _RETRIED.isdisjoint(codes):
        headers["Retry-After"] = "Retry-After"
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "headers": headers,
        "content": {"application/json": {"schema": "ErrorAnswer", "examples": {code: code for code in codes}}},
    }


def _codes_by_status(errors: tuple[type[GatewayError], ...]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for code in (*(error.code for error in errors), "INTERNAL_ERROR"):
        found[STATUS[code].value].append(code)
    return found


def _error_example(code: str) -> dict[str, Any]:
    messages = {error.code: error.default_message for route in ROUTES for error in errors_of(route)}
    details: dict[str, Any] = {}
    if code == "INVALID_REQUEST":
        details = {"fields": {"deviceId": ["Missing data for required field."]}}
    if code == "SESSION_ACTIVE":
        details = {"sessionId": "0b7e3f0e-7c52-4a43-9f0c-1d1f3ff5a0b4"}
    message = messages.get(code, GatewayError.default_message)
    request_id = "5f0c1a9e-4a43-4c6e-8d51-6c3a9d1b2e77"
    return {"error": {"code": code, "message": message, "details": details, "requestId": request_id}}


def _operation_id(route: Route) -> str:
    parts = [part for part in re.split(r"[/.-]", route.path.removeprefix("/api/v1")) if part]
    words = ["By" + part[1].upper() + part[2:-1] if part[0] == "{" else part[0].upper() + part[1:] for part in parts]
    return route.method.lower() + "".join(words)


def component_name(schema: Any) -> str:
    """The name of a schema among the components of a document."""
    cls = resolver(schema)
    return str(cls)


def without_null_default(_converter: Any, _field: Any, ret: dict[str, Any], **_options: Any) -> dict[str, Any]:
    """For the converter: a service takes None for "not given", which is not a value that a client may send."""
    if ret.get("default", ...) is None:
        del ret["default"]
    return {}


def _rules() -> Iterator[tuple[str, Mapping[str, Any]]]:
    bodies: set[Schema | None] = {route.body for route in ROUTES}
    for body in bodies:
        if isinstance(body, Body) and body.rules:
            yield type(body).__name__, body.rules
