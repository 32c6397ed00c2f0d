"""The one table from the contract's codes to HTTP statuses, and the one place where an error body is made.

Whatever else carries these codes to clients takes them from here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import hdrs, web

from ..domain.errors import GatewayError
from .keys import ERROR_CODE, REQUEST_ID

STATUS: Mapping[str, HTTPStatus] = {
    "INVALID_REQUEST": HTTPStatus.BAD_REQUEST,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "INVALID_ACTIVATION_CODE": HTTPStatus.UNAUTHORIZED,
    "INVALID_CREDENTIALS": HTTPStatus.UNAUTHORIZED,
    "FORBIDDEN": HTTPStatus.FORBIDDEN,
    "NO_CUSTOMER": HTTPStatus.FORBIDDEN,
    "DEVICE_SUSPENDED": HTTPStatus.FORBIDDEN,
    "SELF_APPROVAL": HTTPStatus.FORBIDDEN,
    "INVALID_CLAIM_TOKEN": HTTPStatus.FORBIDDEN,
    "CLAIM_EXPIRED": HTTPStatus.FORBIDDEN,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "DEVICE_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "DEVICE_NOT_PROVISIONED": HTTPStatus.NOT_FOUND,
    "SESSION_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "COMMAND_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "METHOD_NOT_ALLOWED": HTTPStatus.METHOD_NOT_ALLOWED,
    "DEVICE_EXISTS": HTTPStatus.CONFLICT,
    "SESSION_ACTIVE": HTTPStatus.CONFLICT,
    "SESSION_CLOSED": HTTPStatus.CONFLICT,
    "ALREADY_DECIDED": HTTPStatus.CONFLICT,
    "DIGEST_MISMATCH": HTTPStatus.CONFLICT,
    "COMMAND_ALREADY_COMPLETED": HTTPStatus.CONFLICT,
    "COMMAND_CANCELED": HTTPStatus.CONFLICT,
    "COMMAND_NOT_ENDED": HTTPStatus.CONFLICT,
    "QUEUE_FULL": HTTPStatus.CONFLICT,
    "IDEMPOTENCY_IN_PROGRESS": HTTPStatus.CONFLICT,
    "PAYLOAD_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "UNSUPPORTED_MEDIA_TYPE": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "IDEMPOTENCY_KEY_REUSED": HTTPStatus.UNPROCESSABLE_ENTITY,
    "RATE_LIMITED": HTTPStatus.TOO_MANY_REQUESTS,
    "INTERNAL_ERROR": HTTPStatus.INTERNAL_SERVER_ERROR,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}

# What the framework itself refuses; any other status of its own becomes 400 or 500.
_FRAMEWORK: Mapping[int, tuple[str, str]] = {
    400: ("INVALID_REQUEST", "The request is not valid."),
    403: ("FORBIDDEN", "This is not allowed, for this origin, method or header."),
    404: ("NOT_FOUND", "There is no such resource."),
    405: ("METHOD_NOT_ALLOWED", "This method is not allowed here."),
    413: ("PAYLOAD_TOO_LARGE", "The body is too large."),
    415: ("UNSUPPORTED_MEDIA_TYPE", "The body must be application/json in UTF-8."),
    503: ("UNAVAILABLE", "The gateway cannot answer now."),
}

_log = structlog.get_logger(__name__)


def error_body(code: str, message: str, details: Mapping[str, Any], request_id: str) -> bytes:
    """The JSON of an error answer (contract section 1)."""
    error = {"code": code, "message": message, "details": details, "requestId": request_id}
    return orjson.dumps({"error": error}, option=orjson.OPT_NON_STR_KEYS)


def error_response(
    request: web.BaseRequest,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    *,
    retry_after: int | None = None,
) -> web.Response:
    """An error answer with the status of `code`. `retry_after` is in seconds."""
    status = STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    headers: dict[str, str] = {}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="aizen"'
    body = error_body(code, message, details or {}, request.get(REQUEST_ID, ""))
    response = web.Response(status=status, body=body, headers=headers, content_type="application/json")
    response[ERROR_CODE] = code
    return response


def from_gateway_error(request: web.BaseRequest, error: GatewayError) -> web.Response:
    """The answer to an expected failure."""
    return error_response(request, error.code, error.message, error.details, retry_after=error.retry_after)


def from_http_exception(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """The answer to what the framework refused: unknown routes, wrong methods, CORS preflights, bad requests."""
    if isinstance(error, web.HTTPForbidden) and isinstance(request, web.Request) and hdrs.ORIGIN not in request.headers:
        return _no_preflight(request)
    fallback = 500 if error.status >= 500 else 400
    code, message = _FRAMEWORK.get(error.status) or _FRAMEWORK.get(fallback) or ("INTERNAL_ERROR", _INTERNAL)
    retry_after = 2 if code == "UNAVAILABLE" else None
    answer = error_response(request, code, message, retry_after=retry_after)
    if isinstance(error, web.HTTPMethodNotAllowed):
        answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return answer


def _no_preflight(request: web.Request) -> web.Response:
    """OPTIONS is for the preflights of browsers, which come with an `Origin`; for others it is no method of ours."""
    resource = request.match_info.route.resource
    answer = error_response(request, *_FRAMEWORK[HTTPStatus.METHOD_NOT_ALLOWED])
    methods = {route.method for route in resource or ()} - {hdrs.METH_OPTIONS}
    answer.headers["Allow"] = ", ".join(sorted(methods))
    return answer


_INTERNAL = "The gateway failed. The request id leads to the reason in its log."


def from_unexpected(request: web.BaseRequest, error: BaseException) -> web.Response:
    """500 for a failure nobody foresaw: logged once with its traceback, and nothing of it is in the answer."""
    _log.error("request_failed", exc_info=error, request_id=request.get(REQUEST_ID))
    return error_response(request, "INTERNAL_ERROR", _INTERNAL)
