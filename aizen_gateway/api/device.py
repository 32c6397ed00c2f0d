"""Handlers of the device API (contract section 3)."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from ..domain.errors import CommandNotFound
from ..domain.values import DeviceCaller
from .endpoint import Call
from .responses import json_response, no_content


async def register(call: Call[None]) -> web.Response:
    body = await call.services.enrollment.register(**call.body, origin=call.origin)
    return json_response(body, HTTPStatus.CREATED)


async def authenticate(call: Call[None]) -> web.Response:
    return json_response(await call.services.enrollment.authenticate(**call.body, origin=call.origin))


async def logout(call: Call[DeviceCaller]) -> web.Response:
    await call.services.enrollment.logout(call.who)
    return no_content()


async def heartbeat(call: Call[str]) -> web.Response:
    return json_response(await call.services.heartbeats.beat(call.who, **call.body, origin=call.origin))


async def claim(call: Call[str]) -> web.Response:
    body = await call.services.delivery.claim(call.who, **call.body, connected=call.connected, origin=call.origin)
    return json_response(body)


async def extend(call: Call[DeviceCaller]) -> web.Response:
    command_id = call.uuid("commandId", CommandNotFound)
    return json_response(await call.services.delivery.extend(call.who, command_id, **call.body, origin=call.origin))


async def report(call: Call[DeviceCaller]) -> web.Response:
    command_id = call.uuid("commandId", CommandNotFound)
    return json_response(await call.services.delivery.report(call.who, command_id, **call.body, origin=call.origin))


async def release(call: Call[DeviceCaller]) -> web.Response:
    command_id = call.uuid("commandId", CommandNotFound)
    return json_response(await call.services.delivery.release(call.who, command_id, **call.body, origin=call.origin))


async def read_command(call: Call[DeviceCaller]) -> web.Response:
    command_id = call.uuid("commandId", CommandNotFound)
    return json_response(await call.services.delivery.read(call.who, command_id))
