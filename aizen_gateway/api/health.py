"""Handlers for whoever watches the process: balancers, service managers, operators (contract section 5)."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus

from aiohttp import web

from ..domain.clock import rfc3339
from .endpoint import Call
from .keys import OPTIONS
from .responses import json_response


async def alive(call: Call[None]) -> web.Response:
    """200 while the process runs: no dependency is asked."""
    return json_response({"status": "ok", "timestamp": rfc3339(datetime.now(UTC))})


async def ready(call: Call[None]) -> web.Response:
    """200 when the gateway can serve, 503 with its own shape when it cannot or is draining."""
    is_ready, body = await call.services.system.readiness()
    return json_response(body, HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)


async def version(call: Call[None]) -> web.Response:
    return json_response({"version": call.request.app[OPTIONS].version})
