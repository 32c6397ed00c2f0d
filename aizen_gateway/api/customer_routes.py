"""The customer API as rows of the route table (contract section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from ..domain import errors as e
from . import customer_devices, customer_sessions
from .endpoint import Auth, Header, Route
from .schemas import customer as c
from .schemas import customer_views as cv

CUSTOMER = "/api/v1/customer"
_DEVICE = f"{CUSTOMER}/devices/{{deviceId}}"
_SESSION = f"{CUSTOMER}/sessions/{{sessionId}}"

_customer = partial(Route, auth=Auth.CUSTOMER, tag="customer", query=c.NoQuery())

_IDEMPOTENCY_KEY = Header("Idempotency-Key", "1-128 printable ASCII characters; the same call with it happens once.")
_IDEMPOTENT_ERRORS = (e.IdempotencyInProgress, e.IdempotencyKeyReused)
_ADD_COMMAND_ERRORS = (e.SessionNotFound, e.SessionClosed, e.QueueFull)

_DEVICES_TABLE: Sequence[Route] = (
    _customer(
        "GET",
        f"{CUSTOMER}/devices",
        customer_devices.list_devices,
        summary="List devices",
        query=c.DevicesQuery(),
        success=cv.DevicesAnswer(),
    ),
    _customer(
        "POST",
        f"{CUSTOMER}/devices/provision",
        customer_devices.provision,
        summary="Provision a device and get its activation code",
        body=c.ProvisionBody(),
        success=cv.ProvisionedAnswer(),
        status=HTTPStatus.CREATED,
        errors=(e.DeviceExists,),
    ),
    _customer(
        "GET",
        f"{_DEVICE}/status",
        customer_devices.status,
        summary="See how a device is",
        success=cv.DeviceStateAnswer(),
        errors=(e.DeviceNotFound,),
    ),
    _customer(
        "GET",
        f"{_DEVICE}/commands",
        customer_devices.commands,
        summary="List a device's commands, newest first",
        query=c.DeviceCommandsQuery(),
        success=cv.CommandsPage(),
        errors=(e.DeviceNotFound,),
    ),
    _customer(
        "PATCH",
        _DEVICE,
        customer_devices.update,
        summary="Change a device's name or location",
        body=c.UpdateDeviceBody(),
        success=cv.DeviceAnswer(),
        errors=(e.DeviceNotFound,),
    ),
    _customer(
        "DELETE",
        _DEVICE,
        customer_devices.delete,
        summary="Delete a device; its history stays in the audit log",
        status=HTTPStatus.NO_CONTENT,
        errors=(e.DeviceNotFound,),
    ),
    _customer(
        "POST",
        f"{_DEVICE}/suspend",
        customer_devices.suspend,
        summary="Suspend a device: its tokens and its open session end",
        body=c.EmptyBody(),
        success=cv.DeviceAnswer(),
        errors=(e.DeviceNotFound,),
    ),
    _customer(
        "POST",
        f"{_DEVICE}/resume",
        customer_devices.resume,
        summary="Let a suspended device sign in again",
        body=c.EmptyBody(),
        success=cv.DeviceAnswer(),
        errors=(e.DeviceNotFound,),
    ),
    _customer(
        "POST",
        f"{_DEVICE}/rotate-secret",
        customer_devices.rotate_secret,
        summary="Void a device's secret and get a new activation code",
        body=c.EmptyBody(),
        success=cv.ProvisionedAnswer(),
        errors=(e.DeviceNotFound,),
    ),
)

_SESSIONS_TABLE: Sequence[Route] = (
    _customer(
        "POST",
        f"{CUSTOMER}/sessions",
        customer_sessions.open_session,
        summary="Open a session with a device",
        headers=(_IDEMPOTENCY_KEY,),
        body=c.OpenSessionBody(),
        success=cv.SessionAnswer(),
        status=HTTPStatus.CREATED,
        errors=(e.DeviceNotFound, e.DeviceSuspended, e.SessionActive, *_IDEMPOTENT_ERRORS),
    ),
    _customer(
        "GET",
        f"{CUSTOMER}/sessions",
        customer_sessions.list_sessions,
        summary="List sessions, newest first",
        query=c.SessionsQuery(),
        success=cv.SessionsPage(),
    ),
    _customer(
        "GET",
        _SESSION,
        customer_sessions.get_session,
        summary="Get a session with its commands",
        success=cv.SessionWithCommandsAnswer(),
        errors=(e.SessionNotFound,),
    ),
    _customer(
        "POST",
        f"{_SESSION}/close",
        customer_sessions.close_session,
        summary="Close a session and cancel its open commands",
        body=c.EmptyBody(),
        success=cv.SessionWithCommandsAnswer(),
        errors=(e.SessionNotFound, e.SessionClosed),
    ),
    _customer(
        "GET",
        f"{_SESSION}/transcript",
        customer_sessions.transcript,
        summary="Read everything that happened in a session, in order",
        success=cv.TranscriptAnswer(),
        errors=(e.SessionNotFound,),
    ),
    _customer(
        "POST",
        f"{_SESSION}/commands",
        customer_sessions.submit_command,
        summary="Submit a command",
        description="A diagnostic is queued; a remediation waits for a person's approval.",
        headers=(_IDEMPOTENCY_KEY,),
        body=c.SubmitCommandBody(),
        success=cv.CommandAnswer(),
        status=HTTPStatus.CREATED,
        errors=(*_ADD_COMMAND_ERRORS, *_IDEMPOTENT_ERRORS),
    ),
    _customer(
        "POST",
        f"{_SESSION}/commands/{{commandId}}/cancel",
        customer_sessions.cancel_command,
        summary="Cancel a command",
        body=c.CancelBody(),
        success=cv.CommandAnswer(),
        errors=(e.SessionNotFound, e.CommandNotFound, e.CommandAlreadyCompleted),
    ),
    _customer(
        "POST",
        f"{_SESSION}/commands/{{commandId}}/retry",
        customer_sessions.retry_command,
        summary="Submit an ended command anew",
        body=c.EmptyBody(),
        success=cv.CommandAnswer(),
        status=HTTPStatus.CREATED,
        errors=(e.CommandNotFound, e.CommandNotEnded, *_ADD_COMMAND_ERRORS),
    ),
    _customer(
        "POST",
        f"{_SESSION}/approve",
        customer_sessions.decide,
        summary="Approve or reject a session, or a command of it",
        body=c.ApproveBody(),
        success=cv.DecisionAnswer(),
        errors=(
            e.SessionNotFound,
            e.CommandNotFound,
            e.AlreadyDecided,
            e.DigestMismatch,
            e.CommandAlreadyCompleted,
            e.SessionClosed,
            e.SelfApproval,
        ),
    ),
    _customer(
        "GET",
        f"{CUSTOMER}/approvals",
        customer_sessions.list_approvals,
        summary="List what now waits for a person, newest first",
        query=c.CursorQuery(),
        success=cv.ApprovalsPage(),
    ),
    _customer(
        "GET",
        f"{CUSTOMER}/audit",
        customer_sessions.list_audit,
        summary="Read the audit log, newest first (owners and admins)",
        query=c.AuditQuery(),
        success=cv.AuditPage(),
    ),
    _customer(
        "GET",
        f"{CUSTOMER}/system",
        customer_sessions.system_info,
        summary="See what is running",
        success=cv.SystemAnswer(),
    ),
    _customer(
        "GET",
        f"{CUSTOMER}/system/info",
        customer_sessions.system_info,
        summary="See what is running (same as /system)",
        success=cv.SystemAnswer(),
    ),
)

CUSTOMER_ROUTES: Sequence[Route] = (*_DEVICES_TABLE, *_SESSIONS_TABLE)
