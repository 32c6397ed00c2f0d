"""What a portal sees while the story is told: events as they arrive on the owner's socket (contract section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from aizen_gateway.dev.demo_customer import Person
from aizen_gateway.dev.demo_print import Teller

_AGAIN_S = 1.0


@asynccontextmanager
async def portal_events(http: aiohttp.ClientSession, owner: Person, teller: Teller) -> AsyncIterator[None]:
    """Tell each event of the customer inside the block; a line that drops is taken up where it broke."""
    task = asyncio.create_task(_follow(http, owner, teller), name="portal-events")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(http: aiohttp.ClientSession, owner: Person, teller: Teller) -> None:
    last: str | None = None
    url = f"{owner.base_url}/ws/customer"
    while True:
        try:
            async with http.ws_connect(url, headers={"Authorization": f"Bearer {owner.token}"}) as socket:
                await socket.send_json({"type": "subscribe", "payload": {"room": "customer", "lastEventId": last}})
                async for frame in socket:
                    if frame.type is not aiohttp.WSMsgType.TEXT:
                        break
                    message = orjson.loads(frame.data)
                    last = message.get("eventId", last)
                    if "eventId" in message:
                        teller.row("portal sees", _sentence(message["type"], message["payload"]), good=None)
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(_AGAIN_S)


def _sentence(kind: str, payload: dict[str, Any]) -> str:
    if command := payload.get("command"):
        return f"{kind}: {command['type']} is {command['status']}"
    if session := payload.get("session"):
        return f"{kind}: the session is {session['status']}"
    return f"{kind}: {payload['deviceId']} is {payload['status']} ({payload['connection']})"
