"""The gateway keeps to its own OpenAPI document, whatever is sent (contract, head of the page, and section 1).

Cases come from the document that a live gateway serves, with the token of an owner or of a device. Half of them are
about things that exist, so that they get past the 404s. They are the same in every run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from tests.support.clients import World
from tests.support.gateway import StartWorld

EVERY_ANSWER = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
CHECKS = {
    GenerationMode.POSITIVE: EVERY_ANSWER,
    GenerationMode.NEGATIVE: [*EVERY_ANSWER, checks.negative_data_rejection],
}
# Cases of an operation that the caller's token opens, and of one that it does not.
EXAMPLES, EXAMPLES_OF_OTHERS = 5, 1
_LONGEST_WAIT_MS = 20

Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """Things that exist: ids by the name under which paths and bodies have them, and the headers of a caller."""

    ids: Mapping[str, str]
    headers: Mapping[str, str]


async def scene(world: World, caller: str, label: str, number: int) -> Scene:
    """A device at work: it has ended one command and holds another, and a third waits for approval.

    An operation that could not succeed with these gets what it can succeed with.
    """
    device = await world.device(f"edge-{number}")
    session = await world.owner.open_session(device.device_id)
    ended = await world.owner.submit(session["id"], "ping")
    await device.report((await device.claim())[0])
    await world.owner.submit(session["id"], "ping")
    (claimed,) = await device.claim()
    waiting = await world.owner.submit(session["id"], "restart_service")
    ids = {
        "deviceId": device.device_id,
        "sessionId": session["id"],
        "commandId": claimed["id"] if caller == "device" else waiting["id"],
        "claimToken": claimed["claimToken"],
        "deviceSecret": device.secret,
        "digest": waiting["digest"],
    }
    if label.endswith("/retry"):
        ids["commandId"] = ended["id"]
    if label.endswith(("POST /api/v1/customer/sessions", "/register")):
        free = await world.owner.provision(f"free-{number}")
        ids |= {"deviceId": free["id"], "activationCode": free["activationCode"]}
    return Scene(ids, device.headers if caller == "device" else world.owner.headers)


@st.composite
def cases(draw: st.DrawFn, operation: Operation, mode: GenerationMode, scene: Scene) -> AnyCase:
    """A case of the operation; about what exists as often as not."""
    known = draw(st.booleans())
    named = {parameter.name for parameter in operation.path_parameters}
    path = {name: scene.ids[name] for name in named} if known and named else None
    case: AnyCase = draw(operation.as_strategy(generation_mode=mode, path_parameters=path))
    if isinstance(case.body, dict):
        # What is to be bad must not be mended by it.
        ids = scene.ids if known and mode is GenerationMode.POSITIVE else {}
        case.body = {name: _real(name, value, ids) for name, value in case.body.items()}
    return case


def _real(name: str, value: Any, ids: Mapping[str, str]) -> Any:
    if name == "waitMs" and type(value) is int and value in range(_LONGEST_WAIT_MS, 30_001):
        return _LONGEST_WAIT_MS
    return ids.get(name, value) if isinstance(value, str) else value


def attack(operation: Operation, mode: GenerationMode, scene: Scene, url: str, examples: int) -> Counter[int]:
    """Send cases of one operation, check every answer, and count their statuses. For a thread: the client blocks."""
    seen: Counter[int] = Counter()
    with requests.Session() as session:

        @given(case=cases(operation, mode, scene))
        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: AnyCase) -> None:
            response = case.call(base_url=url, session=session, headers=dict(scene.headers))
            seen[response.status_code] += 1
            case.validate_response(response, checks=list(CHECKS[mode]))

        check()
    return seen


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("caller", ["owner", "device"])
async def test_every_answer_is_one_that_the_document_tells(
    start_world: StartWorld, caller: str, mode: GenerationMode
) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_DEVICE="0", AIZEN_RATE_LIMIT_CUSTOMER="0", AIZEN_RATE_LIMIT_AUTH="0")
    schema = await asyncio.to_thread(schemathesis.openapi.from_url, f"{world.url}/openapi.json")
    fruitless = []
    for number, result in enumerate(schema.get_all_operations()):
        assert isinstance(result, Ok)
        operation = result.ok()
        audience = "".join(operation.tags or [])
        if mode is GenerationMode.NEGATIVE and audience == "public":
            continue  # Takes nothing that could be bad.
        own = audience == ("customer" if caller == "owner" else "device")
        around = await scene(world, caller, operation.label, number)
        examples = EXAMPLES if own else EXAMPLES_OF_OTHERS
        seen = await asyncio.to_thread(attack, operation, mode, around, world.url, examples)
        if own and not {200, 201, 204} & set(seen):
            fruitless.append(operation.label)
    if mode is GenerationMode.POSITIVE:
        assert fruitless == []
