"""What bodies and queries may say (contract sections 1, 3 and 4), and that answers are as the document shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import Schema
from multidict import MultiDict

from aizen_gateway.api.schemas import customer, customer_views, device, device_views
from aizen_gateway.api.schemas.loading import load, load_query
from aizen_gateway.domain import views
from aizen_gateway.domain.clock import rfc3339
from aizen_gateway.domain.errors import InvalidRequest
from aizen_gateway.domain.records import AuditRecord, Command, Device, Session
from aizen_gateway.domain.values import (
    ActorType,
    CommandKind,
    CommandStatus,
    HeartbeatStatus,
    ResultStatus,
    SessionStatus,
    SessionType,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
RESULT = {"claimToken": "t", "status": "success", "executedAt": "2026-01-31T12:00:00Z", "duration": 5}


def wrong(schema: Schema, data: dict[str, Any]) -> set[str]:
    with pytest.raises(InvalidRequest) as caught:
        load(schema, data)
    return set(caught.value.details["fields"])


def wrong_query(schema: Schema, *pairs: tuple[str, str]) -> set[str]:
    with pytest.raises(InvalidRequest) as caught:
        load_query(schema, MultiDict(pairs))
    return set(caught.value.details["fields"])


def test_a_registration_loads_under_the_services_names() -> None:
    loaded = load(device.RegisterBody(), {"deviceId": "edge-01", "activationCode": "abcde-fghjk"})
    assert loaded == {"device_id": "edge-01", "activation_code": "abcde-fghjk", "device_name": None, "metadata": None}


@pytest.mark.parametrize("bad", ["ab", "-abc", "a" * 65, "a b c", "abc\n", "é" * 4, "", 5, None, ["abc"]])
def test_a_device_id_has_the_contracts_form(bad: Any) -> None:
    assert "deviceId" in wrong(device.AuthBody(), {"deviceId": bad, "deviceSecret": "s"})


def test_devices_may_send_unknown_fields_and_null_for_absent_ones() -> None:
    body = {**RESULT, "output": None, "error": None, "result": None, "firmware": "9"}
    loaded = load(device.ResultBody(), body)
    assert loaded["output"] is loaded["error"] is loaded["result"] is None
    assert load(device.ClaimBody(), {"limit": None, "waitMs": None}) == {
        "limit": 1,
        "visibility_timeout": 300_000,
        "wait_ms": 0,
    }
    assert wrong(device.ResultBody(), {**RESULT, "claimToken": None}) == {"claimToken"}


def test_a_result_keeps_its_number_and_its_time() -> None:
    loaded = load(device.ResultBody(), {**RESULT, "executedAt": "2026-01-31T14:30:00.1234567+02:30"})
    assert loaded["status"] is ResultStatus.SUCCESS
    assert loaded["executed_at"] == datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    assert (loaded["duration"], type(loaded["duration"])) == (5, int)
    assert type(load(device.ResultBody(), {**RESULT, "duration": 5.5})["duration"]) is float


@pytest.mark.parametrize("bad", [-1, -0.5, True, "5", None, [5]])
def test_a_duration_is_a_number_that_is_not_negative(bad: Any) -> None:
    assert wrong(device.ResultBody(), {**RESULT, "duration": bad}) == {"duration"}


@pytest.mark.parametrize(
    "bad",
    [
        "2026-01-31T12:00:00",
        "2026-01-31",
        "2026-02-30T12:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:00:00+25:00",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2026-W05-6T12:00:00Z",
        "20260131T120000Z",
        "2026-01-31T12:00:00Z\n",
        "٢٠٢٦-01-31T12:00:00Z",
        1769860800,
        True,
    ],
)
def test_a_time_is_rfc_3339_with_an_offset(bad: Any) -> None:
    assert wrong(device.ResultBody(), {**RESULT, "executedAt": bad}) == {"executedAt"}


@given(st.text())
def test_no_text_makes_a_time_fail_unexpectedly(text: str) -> None:
    assert wrong(device.ResultBody(), {**RESULT, "executedAt": text}) == {"executedAt"}


def test_a_heartbeat_takes_numbers_as_metrics_and_any_json_as_diagnostics() -> None:
    body = {"status": "degraded", "metrics": {"cpu": 1, "temperature": 40.5}, "diagnostics": [1, {"a": None}]}
    loaded = load(device.HeartbeatBody(), body)
    assert loaded["status"] is HeartbeatStatus.DEGRADED
    assert loaded["metrics"] == {"cpu": 1, "temperature": 40.5}
    assert loaded["diagnostics"] == [1, {"a": None}]


@pytest.mark.parametrize("bad", [{"cpu": "1"}, {"cpu": True}, {"cpu": None}, {"cpu": {}}, [], "x", 5])
def test_metrics_that_are_no_numbers_are_refused(bad: Any) -> None:
    assert wrong(device.HeartbeatBody(), {"status": "online", "metrics": bad}) == {"metrics"}


@pytest.mark.parametrize("bad", ["up", "", 1, None, [], {}])
def test_a_status_is_one_of_the_contracts_words(bad: Any) -> None:
    assert wrong(device.HeartbeatBody(), {"status": bad}) == {"status"}


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("limit", 1, 10), ("visibilityTimeout", 1000, 3_600_000), ("waitMs", 0, 30_000)],
)
def test_a_claim_is_held_to_its_bounds(name: str, least: int, most: int) -> None:
    for good in (least, most):
        load(device.ClaimBody(), {name: good})
    for bad in (least - 1, most + 1, str(least), float(most), True, [least]):
        assert wrong(device.ClaimBody(), {name: bad}) == {name}


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("priority", 1, 10),
        ("timeoutMs", 1000, 3_600_000),
        ("expiresInMs", 1000, 604_800_000),
        ("maxDeliveries", 1, 20),
    ],
)
def test_a_command_is_held_to_its_bounds(name: str, least: int, most: int) -> None:
    for good in (least, most):
        load(customer.SubmitCommandBody(), {"type": "ping", name: good})
    for bad in (least - 1, most + 1, str(least), float(most), True, None):
        assert wrong(customer.SubmitCommandBody(), {"type": "ping", name: bad}) == {name}


def test_a_command_has_defaults_for_all_but_its_type() -> None:
    assert load(customer.SubmitCommandBody(), {"type": "ping"}) == {
        "type": "ping",
        "parameters": {},
        "priority": 5,
        "timeout_ms": 300_000,
        "expires_in_ms": None,
        "max_deliveries": None,
        "reason": None,
    }


@pytest.mark.parametrize("bad", ["Ping", "1ping", "", "a" * 65, "a b", "ping\n", 5, None])
def test_a_command_type_has_the_contracts_form(bad: Any) -> None:
    assert wrong(customer.SubmitCommandBody(), {"type": bad}) == {"type"}


def test_parameters_are_an_object_of_at_most_16_kib() -> None:
    schema = customer.SubmitCommandBody()
    fits = {"a": "é" * ((16 * 1024 - 8) // 2)}
    assert load(schema, {"type": "ping", "parameters": fits})["parameters"] == fits
    assert wrong(schema, {"type": "ping", "parameters": {"a": fits["a"] + "x"}}) == {"parameters"}
    refused: list[Any] = [[], "x", 5, None]
    for bad in refused:
        assert wrong(schema, {"type": "ping", "parameters": bad}) == {"parameters"}


def test_customers_may_not_send_unknown_fields() -> None:
    assert wrong(customer.EmptyBody(), {"a": 1}) == {"a"}
    assert wrong(customer.ProvisionBody(), {"deviceId": "abc", "colour": "red"}) == {"colour"}


def test_null_is_taken_where_it_means_none_and_nowhere_else() -> None:
    body = {"deviceId": "abc", "type": "diagnostic", "description": None}
    assert load(customer.OpenSessionBody(), body)["description"] is None
    assert load(customer.UpdateDeviceBody(), {"location": None}) == {"location": None}
    assert load(customer.UpdateDeviceBody(), {}) == {}
    assert wrong(customer.UpdateDeviceBody(), {"name": None}) == {"name"}
    assert wrong(customer.ProvisionBody(), {"deviceId": "abc", "name": None}) == {"name"}


@pytest.mark.parametrize("bad", ["", "  ", "\n", "x" * 201, 5])
def test_a_name_is_not_blank(bad: Any) -> None:
    assert wrong(customer.UpdateDeviceBody(), {"name": bad}) == {"name"}


@pytest.mark.parametrize("bad", ["true", 1, 0, "yes", None])
def test_a_decision_is_true_or_false(bad: Any) -> None:
    assert wrong(customer.ApproveBody(), {"approved": bad}) == {"approved"}


@pytest.mark.parametrize("reason", [{}, {"reason": None}, {"reason": ""}, {"reason": " \t"}])
def test_a_rejection_needs_a_reason(reason: dict[str, Any]) -> None:
    assert wrong(customer.ApproveBody(), {"approved": False, **reason}) == {"reason"}
    load(customer.ApproveBody(), {"approved": True, **reason})


@pytest.mark.parametrize(
    "bad", [None, "", "x", "{8d4b1f0a-64a5-4a7e-9d53-0f8a7c1e2b90}", "8d4b1f0a64a54a7e9d530f8a7c1e2b90", 5]
)
def test_a_command_id_that_is_none_never_decides_the_session(bad: Any) -> None:
    assert wrong(customer.ApproveBody(), {"approved": True, "commandId": bad}) == {"commandId"}


def test_a_digest_goes_with_a_command() -> None:
    assert wrong(customer.ApproveBody(), {"approved": True, "digest": "sha256:0"}) == {"digest"}
    body = {"approved": True, "digest": "sha256:0", "commandId": str(uuid4())}
    assert load(customer.ApproveBody(), body)["digest"] == "sha256:0"


def test_a_page_is_at_most_200_long() -> None:
    assert load_query(customer.CursorQuery(), MultiDict()) == {"limit": 50, "cursor": None}
    assert load_query(customer.CursorQuery(), MultiDict(limit="200"))["limit"] == 200
    for bad in ("201", "0", "-1", "", "5.0", " 5", "5 ", "1e1", "\u0665", "0x5", "true", "9" * 5000):
        assert wrong_query(customer.CursorQuery(), ("limit", bad)) == {"limit"}


def test_a_query_parameter_is_known_and_given_once() -> None:
    assert wrong_query(customer.NoQuery(), ("a", "1")) == {"a"}
    assert wrong_query(customer.CursorQuery(), ("limit", "5"), ("limit", "5")) == {"limit"}


def test_an_empty_text_parameter_counts_as_absent() -> None:
    query = MultiDict(status="", search="", limit="5")
    assert load_query(customer.DevicesQuery(), query) == {"status": "all", "search": None, "limit": 5, "offset": 0}
    loaded = load_query(customer.SessionsQuery(), MultiDict(status="", cursor="", deviceId=""))
    assert loaded == {"status": None, "cursor": None, "device_id": None, "limit": 50}


def test_a_status_to_filter_by_is_one_of_the_contracts_words() -> None:
    for schema in (customer.DevicesQuery(), customer.SessionsQuery(), customer.DeviceCommandsQuery()):
        assert wrong_query(schema, ("status", "nonsense")) == {"status"}
    assert load_query(customer.DeviceCommandsQuery(), MultiDict(status="queued"))["status"] == "queued"


def test_text_in_a_query_can_be_stored() -> None:
    assert load_query(customer.DevicesQuery(), MultiDict(search="a\x00\ud800"))["search"] == "a\ufffd\ufffd"
    assert wrong_query(customer.DevicesQuery(), ("search", "x" * 201)) == {"search"}


def test_not_every_one_of_very_many_wrong_fields_is_named() -> None:
    assert len(wrong(customer.EmptyBody(), {str(number): 1 for number in range(5000)})) == 50


APPROVAL = {"decision": "approved", "by": "x", "at": rfc3339(NOW), "reason": None, "digest": "sha256:0"}


def command(**changes: Any) -> Command:
    whole: dict[str, Any] = {
        **dict.fromkeys(Command.__dataclass_fields__),
        "id": uuid4(),
        "device_id": "edge-01",
        "session_id": uuid4(),
        "type": "ping",
        "kind": CommandKind.DIAGNOSTIC,
        "parameters": {},
        "digest": "sha256:0",
        "priority": 5,
        "status": CommandStatus.CLAIMED,
        "attempt": 1,
        "max_deliveries": 5,
        "timeout_ms": 1000,
        "proposed_by": "x",
        "created_at": NOW,
        "expires_at": NOW,
        "claim_token": "t",
        "visible_until": NOW.replace(hour=13),
    }
    return Command(**{**whole, **changes})


def fits(schema: Schema, view: dict[str, Any]) -> None:
    """Every field of `view` is in the document, and every one that the document promises is in `view`."""
    shown = {field.data_key or name: field for name, field in schema.fields.items()}
    assert set(view) <= set(shown)
    assert {name for name, field in shown.items() if field.required} <= set(view)
    for name, value in view.items():
        assert value is not None or shown[name].allow_none, name


def test_a_command_is_shown_as_documented_at_every_stage() -> None:
    ended = command(
        status=CommandStatus.CANCELED,
        reason="r",
        retry_of=uuid4(),
        approval=APPROVAL,
        claimed_at=NOW,
        completed_at=NOW,
        cancel_reason="c",
        result={"status": "success"},
    )
    fits(customer_views.Command(), views.command_view(command()))
    fits(customer_views.Command(), views.command_view(ended))
    fits(customer_views.Approval(), APPROVAL)
    fits(device_views.Claimed(), views.claimed_view(command(), NOW))
    fits(device_views.DeviceCommand(), views.device_command_view(command(), NOW))
    fits(device_views.DeviceCommand(), views.device_command_view(ended, NOW))


def test_devices_sessions_and_records_are_shown_as_documented() -> None:
    known = Device(uuid4(), "edge-01", uuid4(), "Edge", None, None, None, "offline", "none", None, None, None, None, 1)
    fits(customer_views.Device(), views.device_view(known))
    ids = (uuid4(), uuid4(), uuid4())
    kind, status, actor = SessionType.DIAGNOSTIC, SessionStatus.ACTIVE, ActorType.USER
    opened = Session(*ids, "edge-01", kind, status, None, "x", actor, NOW, NOW, None, None)
    fits(customer_views.Session(), views.session_view(opened))
    fits(customer_views.SessionWithCommands(), views.session_view(opened, [command()]))
    record = AuditRecord(1, NOW, "a.b", "a", "1", "x", "user", uuid4(), None, None, None, {})
    fits(customer_views.AuditRecord(), views.audit_view(record))
    fits(customer_views.TranscriptEntry(), views.transcript_view(record))
