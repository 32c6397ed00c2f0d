"""Handlers of the customer API that are about sessions, commands, approvals and what happened (contract section 4)."""

from __future__ import annotations

from aiohttp import web

from ..domain.errors import CommandNotFound, SessionNotFound
from ..domain.values import Principal
from .endpoint import Call
from .responses import answer_response, json_response


async def open_session(call: Call[Principal]) -> web.Response:
    answer = await call.services.sessions.open(
        call.who, **call.body, idempotency=call.idempotency(), origin=call.origin
    )
    return answer_response(answer)


async def list_sessions(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.sessions.list(call.who, **call.query))


async def get_session(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.sessions.get(call.who, call.uuid("sessionId", SessionNotFound)))


async def close_session(call: Call[Principal]) -> web.Response:
    session_id = call.uuid("sessionId", SessionNotFound)
    return json_response(await call.services.sessions.close(call.who, session_id, origin=call.origin))


async def transcript(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.sessions.transcript(call.who, call.uuid("sessionId", SessionNotFound)))


async def submit_command(call: Call[Principal]) -> web.Response:
    session_id = call.uuid("sessionId", SessionNotFound)
    answer = await call.services.commands.submit(
        call.who, session_id, **call.body, idempotency=call.idempotency(), origin=call.origin
    )
    return answer_response(answer)


async def cancel_command(call: Call[Principal]) -> web.Response:
    session_id = call.uuid("sessionId", SessionNotFound)
    command_id = call.uuid("commandId", CommandNotFound)
    body = await call.services.commands.cancel(call.who, session_id, command_id, **call.body, origin=call.origin)
    return json_response(body)


async def retry_command(call: Call[Principal]) -> web.Response:
    session_id = call.uuid("sessionId", SessionNotFound)
    command_id = call.uuid("commandId", CommandNotFound)
    return answer_response(await call.services.commands.retry(call.who, session_id, command_id, origin=call.origin))


async def decide(call: Call[Principal]) -> web.Response:
    session_id = call.uuid("sessionId", SessionNotFound)
    return json_response(await call.services.approvals.decide(call.who, session_id, **call.body, origin=call.origin))


async def list_approvals(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.approvals.list(call.who, **call.query))


async def list_audit(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.audit.list(call.who, **call.query))


async def system_info(call: Call[Principal]) -> web.Response:
    return json_response(await call.services.system.info(call.who))
