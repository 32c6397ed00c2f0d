"""The agent's line to the gateway: the socket while it can be had, single calls and long polling otherwise.

Every message goes over the socket when one is open and over REST when the socket brings no answer, with the same body:
what the gateway has taken already it answers as a repeat, so nothing is lost and nothing is done twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import aiohttp

from aizen_gateway.dev.agent_api import Announce, Backoff, GatewayClient, GatewayUnavailable
from aizen_gateway.dev.agent_config import AgentConfig
from aizen_gateway.dev.agent_socket import AgentSocket, NotAnswered, Pushes, SocketEnd, SocketRefused, Then

# A socket that lived so many seconds was a good one: the next is tried as if nothing had failed before.
_STEADY_S = 10.0
_FAILURES_IN_A_ROW = 3
# While another copy of this device is connected, the waiting time doubles up to so many times its beginning.
_ALOOF_TIMES = 10


class Line:
    """How this device talks with the gateway. `run` keeps the socket; without it everything goes over REST."""

    def __init__(
        self, client: GatewayClient, session: aiohttp.ClientSession, config: AgentConfig, announce: Announce
    ) -> None:
        self._client = client
        self._session = session
        self._config = config
        self._announce = announce
        self._socket: AgentSocket | None = None
        self._stale: str | None = None
        self._backoff = Backoff(config.retry_base_ms / 1000, config.retry_cap_ms / 1000)
        self._aloof = Backoff(2 * config.away_ms / 1000, _ALOOF_TIMES * config.away_ms / 1000)
        self._failures = 0
        self._answered = 0
        self._polling = asyncio.Event()
        self._ours = asyncio.Event()
        self._ours.set()
        if not config.use_socket:
            self._polling.set()

    @property
    def has_socket(self) -> bool:
        """Whether the gateway now pushes commands by itself."""
        return self._socket is not None

    async def until_polling(self) -> None:
        """Wait until commands have to be asked for."""
        await self._polling.wait()

    async def until_ours(self) -> None:
        """Wait while another copy of this device is connected: it speaks for the device now."""
        await self._ours.wait()

    async def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Say how the device is. As the other calls, it raises `GatewayRefused`, `GatewayUnavailable`, `NotWelcome`."""
        return await self._asked("heartbeat", body) or await self._client.heartbeat(body)

    async def extend(self, command: UUID, claim_token: str, extension_ms: int) -> dict[str, Any]:
        """Keep a claim for longer."""
        body = {"commandId": str(command), "claimToken": claim_token, "extensionMs": extension_ms}
        return await self._asked("extend", body) or await self._client.extend(command, claim_token, extension_ms)

    async def report(self, command: UUID, body: Mapping[str, Any]) -> dict[str, Any]:
        """Hand in a result. Only an answer that says `success` counts as taken."""
        answer = await self._asked("command_result", {"commandId": str(command), **body})
        if answer is not None and answer.get("success") is True:
            return answer
        return await self._client.report(command, body)

    async def release(self, command: UUID, claim_token: str) -> dict[str, Any]:
        """Hand a command back unexecuted."""
        body = {"commandId": str(command), "claimToken": claim_token}
        return await self._asked("release", body) or await self._client.release(command, claim_token)

    async def _asked(self, type: str, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer over the socket, None when there is none."""
        if self._socket is None:
            return None
        try:
            return await self._socket.ask(type, payload)
        except NotAnswered:
            return None

    async def run(self, pushes: Pushes, on_open: Callable[[], None]) -> None:
        """Have a socket whenever it can be had, until cancelled; `on_open` is called for each. Raises `NotWelcome`."""
        while True:
            end, lived_s = await self._once(pushes, on_open)
            pause_s = self._after(end, lived_s)
            fields = {"reason": end.reason, "again_in_s": round(pause_s, 2), "polling": self._polling.is_set()}
            self._announce("socket_refused" if lived_s is None else "socket_ended", fields)
            await asyncio.sleep(pause_s)
            self._ours.set()

    async def _once(self, pushes: Pushes, on_open: Callable[[], None]) -> tuple[SocketEnd, float | None]:
        """Try to have a socket, and have it while it lasts; return why it ended and after how many seconds."""
        loop = asyncio.get_running_loop()
        lived_s: float | None = None
        try:
            token = await self._client.sign_in(stale=self._stale)
        except GatewayUnavailable as unavailable:
            return SocketEnd(Then.AGAIN, str(unavailable), retry_after_s=unavailable.retry_after_s), None
        try:
            socket = await AgentSocket.open(self._session, self._config.socket_url, token)
            opened_at = loop.time()
            self._begin(socket, pushes, on_open)
            end = await socket.run(pushes)
            lived_s = loop.time() - opened_at
        except SocketRefused as refused:
            end = refused.end
        finally:
            self._socket = None
        if end.then is Then.SIGN_IN:
            self._stale = token
        return end, lived_s

    def _begin(self, socket: AgentSocket, pushes: Pushes, on_open: Callable[[], None]) -> None:
        self._socket = socket
        self._polling.clear()
        self._announce("socket_open", {"connection_id": str(socket.greeting.get("connectionId"))})
        pushes.pace(socket.greeting.get("heartbeatIntervalMs"))
        on_open()

    def _after(self, end: SocketEnd, lived_s: float | None) -> float:
        """Settle what goes on without a socket, and return the seconds until the next try.

        `lived_s` is None when there was none. A socket that was lost is replaced before polling begins.
        """
        away_s = self._config.away_ms / 1000
        if lived_s is not None and lived_s >= _STEADY_S:
            self._backoff.reset()
            self._failures = 0
        if lived_s is not None and lived_s >= _ALOOF_TIMES * away_s:
            self._aloof.reset()
        if end.then is Then.ALOOF:
            # Two that fight for one connection would keep the device from both of them.
            self._announce("superseded", {"reason": "another copy of this device is connected"})
            self._polling.clear()
            self._ours.clear()
            return self._aloof.next()
        if end.then is Then.LATER:
            self._polling.set()
            return away_s * random.uniform(1.0, 2.0)
        if end.then is Then.NOT_HERE or self._is_blocked():
            self._polling.set()
            return self._config.socket_retry_ms / 1000 * random.uniform(0.75, 1.25)
        if lived_s is None:
            self._polling.set()
        return self._backoff.next(end.retry_after_s)

    def _is_blocked(self) -> bool:
        """Count a failure, and return whether it is the socket alone that fails again and again.

        While the gateway answers nothing at all, the fault is not the socket's.
        """
        if self._client.answered > self._answered:
            self._failures += 1
        self._answered = self._client.answered
        return self._failures >= _FAILURES_IN_A_ROW
