"""Handlers of the customer API that are about devices (contract section 4)."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from ..domain.values import Principal
from .endpoint import Call
from .responses import json_response, no_content


async def list_devices(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.devices.list(call.who, **call.query))


async def provision(call: Call[Principal]) -> web.Response:
    body = await call.services.devices.provision(call.who, **call.body, origin=call.origin)
    return json_response(body, HTTPStatus.CREATED)


async def status(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.devices.status(call.who, call.device_id()))


async def commands(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.devices.commands(call.who, call.device_id(), **call.query))


async def update(call: Call[Principal]) -> web.Response:
    body = await call.services.devices.update(call.who, call.device_id(), changes=call.body, origin=call.origin)
    return json_response(body)


async def suspend(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.devices.suspend(call.who, call.device_id(), origin=call.origin))


async def resume(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.devices.resume(call.who, call.device_id(), origin=call.origin))


async def rotate_secret(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.devices.rotate_secret(call.who, call.device_id(), origin=call.origin))


async def delete(call: Call[Principal]) -> web.Response:
    await call.services.devices.delete(call.who, call.device_id(), origin=call.origin)
    return no_content()
