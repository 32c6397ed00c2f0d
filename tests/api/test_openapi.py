"""The OpenAPI document is valid, complete, and says what the gateway does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from schemathesis.specs.openapi.definitions import OPENAPI_31

from aizen_gateway.api.endpoint import Auth
from aizen_gateway.api.errors import STATUS
from aizen_gateway.api.openapi import openapi_document
from aizen_gateway.api.openapi_text import EXAMPLES
from aizen_gateway.api.routes import ROUTES, SOCKETS, errors_of
from aizen_gateway.api.schemas.loading import load

from .bare import bare_app, serving


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document("1.2.3")


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    problems = [error.message for error in jsonschema_rs.Draft202012Validator(OPENAPI_31).iter_errors(document)]
    assert problems == []
    for schema in document["components"]["schemas"].values():
        assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_a_client_made_from_it_finds_every_operation(document: dict[str, Any]) -> None:
    found = list(schemathesis.openapi.from_dict(document).get_all_operations())
    assert [type(one).__name__ for one in found] == ["Ok"] * len(ROUTES)


def test_every_route_is_documented_and_every_documented_one_is_routed(document: dict[str, Any]) -> None:
    routed = {
        (route.method, route.resource.canonical)
        for route in bare_app().router.routes()
        if route.resource is not None
        and route.method not in ("OPTIONS", "HEAD")
        and route.resource.canonical not in SOCKETS
    }
    assert routed == {(method, path) for method, path, _ in operations(document)}


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_every_operation_tells_its_failures_and_its_request_id(document: dict[str, Any]) -> None:
    routes = {(route.method, route.path): route for route in ROUTES}
    for method, path, operation in operations(document):
        told = set(
            re.findall(r"`([A-Z_]+)`", str([answer["description"] for answer in operation["responses"].values()]))
        )
        assert told == {error.code for error in errors_of(routes[method, path])} | {"INTERNAL_ERROR"}
        for answer in operation["responses"].values():
            assert "X-Request-ID" in answer["headers"]


def test_every_operation_but_sign_in_and_the_public_ones_asks_for_a_token(document: dict[str, Any]) -> None:
    free = {path for _, path, operation in operations(document) if not operation["security"]}
    assert free == {route.path for route in ROUTES if route.auth is Auth.NONE}
    assert free == {
        "/api/v1/device/register",
        "/api/v1/device/auth",
        "/healthz",
        "/readyz",
        "/version",
        "/openapi.json",
        "/asyncapi.json",
        "/docs",
    }


def test_codes_that_may_be_tried_again_say_when(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        for status in ("429", "503"):
            answer = operation["responses"].get(status)
            if answer is not None and "`" in answer["description"]:
                assert "Retry-After" in answer["headers"]


def test_the_examples_are_valid(document: dict[str, Any]) -> None:
    bodies = {type(route.body).__name__: route.body for route in ROUTES if route.body is not None}
    for name, example in EXAMPLES.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema_rs.validate(schema, example)
        if name in bodies:
            load(bodies[name], example)


def test_examples_of_failures_have_the_shape_of_failures(document: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/ErrorAnswer", "components": document["components"]}
    for code, example in document["components"]["examples"].items():
        assert example["value"]["error"]["code"] == code
        assert code in STATUS
        jsonschema_rs.validate(schema, example["value"])


def test_nothing_is_documented_as_null_by_default(document: dict[str, Any]) -> None:
    assert "'default': None" not in repr(document)


async def test_the_documents_are_served_without_anything_from_elsewhere(document: dict[str, Any]) -> None:
    async with serving(bare_app()) as client:
        assert await (await client.get("/openapi.json")).json() == document
        response = await client.get("/docs")
        page = await response.text()
    assert response.content_type == "text/html"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://|javascript:", page)
    for route in ROUTES:
        assert route.path in page
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page
