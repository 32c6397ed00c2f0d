"""The device API as rows of the route table (contract section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from ..domain import errors as e
from . import device
from .body import RESULT_BODY_LIMIT
from .endpoint import Auth, Route
from .schemas import device as d
from .schemas import device_views as dv

DEVICE = "/api/v1/device"
_COMMAND = f"{DEVICE}/commands/{{commandId}}"
_ORDER_OF_CHECKS = "An absent token is refused first; a bad body is told before a token that is not valid."

_sign_in = partial(Route, auth=Auth.NONE, tag="device")
_device = partial(Route, auth=Auth.DEVICE, tag="device")
_polling = partial(Route, auth=Auth.DEVICE_TOKEN, tag="device", description=_ORDER_OF_CHECKS)

_CLAIM_ERRORS = (
    e.CommandNotFound,
    e.InvalidClaimToken,
    e.ClaimExpired,
    e.CommandAlreadyCompleted,
    e.CommandCanceled,
)

DEVICE_ROUTES: Sequence[Route] = (
    _sign_in(
        "POST",
        f"{DEVICE}/register",
        device.register,
        summary="Exchange an activation code for a secret",
        description="The code may be used again for 10 minutes, until the secret has been used once.",
        body=d.RegisterBody(),
        success=dv.RegisteredAnswer(),
        status=HTTPStatus.CREATED,
        errors=(e.InvalidActivationCode, e.DeviceNotProvisioned, e.RateLimited),
    ),
    _sign_in(
        "POST",
        f"{DEVICE}/auth",
        device.authenticate,
        summary="Get a session token",
        body=d.AuthBody(),
        success=dv.AuthenticatedAnswer(),
        errors=(e.InvalidCredentials, e.DeviceSuspended, e.RateLimited),
    ),
    _device(
        "POST",
        f"{DEVICE}/logout",
        device.logout,
        summary="End this token",
        body=d.LogoutBody(),
        status=HTTPStatus.NO_CONTENT,
    ),
    _polling(
        "POST",
        f"{DEVICE}/heartbeat",
        device.heartbeat,
        summary="Tell how the device is",
        body=d.HeartbeatBody(),
        success=dv.HeartbeatAnswer(),
    ),
    _polling(
        "POST",
        f"{DEVICE}/commands/claim",
        device.claim,
        summary="Lease commands, waiting for one if asked to",
        body=d.ClaimBody(),
        repeats=True,
        success=dv.ClaimedAnswer(),
    ),
    _device(
        "POST",
        f"{_COMMAND}/extend",
        device.extend,
        summary="Extend a lease, counted from now",
        body=d.ExtendBody(),
        success=dv.ExtendedAnswer(),
        errors=_CLAIM_ERRORS,
    ),
    _device(
        "POST",
        f"{_COMMAND}/result",
        device.report,
        summary="Report what came of a command",
        body=d.ResultBody(),
        body_limit=RESULT_BODY_LIMIT,
        success=dv.ReportedAnswer(),
        errors=_CLAIM_ERRORS,
    ),
    _device(
        "POST",
        f"{_COMMAND}/release",
        device.release,
        summary="Hand a command back unexecuted",
        body=d.ReleaseBody(),
        success=dv.ReleasedAnswer(),
        errors=_CLAIM_ERRORS,
    ),
    _device(
        "GET",
        _COMMAND,
        device.read_command,
        summary="Read a command of this device",
        success=dv.DeviceCommandAnswer(),
        errors=(e.CommandNotFound,),
    ),
)
