"""The reference device agent: the device's side of the contract (section 3), complete enough to run in the field.

It registers once, signs in, says how it is, waits for commands, really runs them, and reports. Nothing it owes the
gateway is lost by a lost connection, a restart of either side or a power cut.
"""

from __future__ import annotations

import asyncio
import platform
import random
from collections.abc import Mapping
from typing import Any

import aiohttp
import structlog

from aizen_gateway import __version__
from aizen_gateway.dev.agent_api import (
    Announce,
    Backoff,
    GatewayClient,
    GatewayRefused,
    GatewayUnavailable,
    NotWelcome,
    happens,
)
from aizen_gateway.dev.agent_commands import Commands
from aizen_gateway.dev.agent_config import AgentConfig
from aizen_gateway.dev.agent_disk import DiskThread
from aizen_gateway.dev.agent_line import Line
from aizen_gateway.dev.agent_socket import Pushes, no_redirects
from aizen_gateway.dev.agent_state import AgentState, Credentials, StateUnusable, hash_of_code
from aizen_gateway.dev.diagnostics import diagnostics_table
from aizen_gateway.dev.diagnostics.metrics import CpuMeter, heartbeat_metrics
from aizen_gateway.dev.remediation import remediations_table
from aizen_gateway.domain.values import HeartbeatStatus

__all__ = ["AgentConfig", "Announce", "NotWelcome", "StateUnusable", "run_agent"]

_HEARTBEAT_MS = 30_000
_SOON_S = 0.5
# How long the processors are watched before the first heartbeat, so that it can say how busy they are.
_CPU_SAMPLE_S = 0.2


async def run_agent(config: AgentConfig, *, stop: asyncio.Event, announce: Announce | None = None) -> None:
    """Be the device until `stop` is set, and leave nothing running behind.

    `announce(event, fields)` is called, on the event loop, with everything worth telling: `registered`, `signed_in`,
    `socket_open`, `socket_ended`, `heartbeat`, `claimed`, `started`, `lease_extended`, `finished`, `refused`,
    `repeat`, `reported`, `result_dropped`, `released`, `superseded`, `trouble` and others; no field is ever a secret.
    Without it they are log lines.
    Raises `NotWelcome` when the gateway refuses the device for good, and `StateUnusable`.
    """
    disk = DiskThread()
    try:
        state = await disk(AgentState.open, config.state_dir)
        try:
            jar, tracing = aiohttp.DummyCookieJar(), [no_redirects()]
            async with aiohttp.ClientSession(cookie_jar=jar, trace_configs=tracing) as session:
                await _Agent(config, state, disk, session, announce or _log).run(stop)
        finally:
            await disk(state.close)
    finally:
        disk.close()


class _Agent:
    def __init__(
        self,
        config: AgentConfig,
        state: AgentState,
        disk: DiskThread,
        session: aiohttp.ClientSession,
        announce: Announce,
    ) -> None:
        self._config = config
        self._state = state
        self._disk = disk
        self._announce = announce
        away_s = config.away_ms / 1000
        self._client = GatewayClient(session, config.base_url, config.device_id, announce, away_s=away_s)
        self._line = Line(self._client, session, config, announce)
        targets = config.connectivity_targets or (config.gateway_target,)
        self._commands = Commands(
            self._line,
            state,
            disk,
            diagnostics=diagnostics_table(log_files=config.log_files, targets=targets),
            remediations=remediations_table(config.state_dir),
            concurrency=config.concurrency,
            visibility_timeout_ms=config.visibility_timeout_ms,
            backoff=self._backoff(),
            announce=announce,
        )
        self._heartbeat_ms: float = _HEARTBEAT_MS
        self._beat_now = asyncio.Event()
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        stopped = asyncio.create_task(stop.wait())
        connecting = asyncio.create_task(self._connect())
        tasks: list[asyncio.Task[Any]] = [stopped, connecting]
        try:
            await asyncio.wait({stopped, connecting}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                return
            await connecting
            claiming = asyncio.create_task(self._claim())
            sending = asyncio.create_task(self._commands.reports.run())
            beating = asyncio.create_task(self._beat())
            tasks += [claiming, sending, beating]
            if self._config.use_socket:
                pushes = Pushes(self._commands.accept, self._commands.cancel, self._pace)
                tasks.append(asyncio.create_task(self._line.run(pushes, self._on_open)))
            done, _ = await asyncio.wait(set(tasks) - {connecting}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {stopped}:
                ended.result()
            await self._wind_down(*tasks)
        finally:
            await _end(*tasks)
            await self._commands.close()

    async def _wind_down(self, *tasks: asyncio.Task[Any]) -> None:
        """Stop well, in steps of bounded length. The socket is closed first: the gateway pushes nothing more."""
        grace_s = self._config.stop_grace_ms / 1000
        self._stopping = True
        self._announce("stopping", {"running": self._commands.running})
        self._commands.take_no_more()
        await _end(*tasks)
        await self._commands.finish(grace_s)
        try:
            async with asyncio.timeout(grace_s):
                await self._line.heartbeat({"status": HeartbeatStatus.OFFLINE.value})
        except (GatewayRefused, GatewayUnavailable, NotWelcome, TimeoutError):
            self._announce("trouble", {"doing": "saying goodbye", "reason": "the gateway was not reached"})
        self._announce("stopped", {})

    async def _connect(self) -> None:
        """Register where that is still to be done, and sign in; tries until it works or is refused for good."""
        credentials = await self._disk(self._state.credentials)
        if credentials is not None and credentials.device_id != self._config.device_id:
            raise StateUnusable(f"{self._config.state_dir} belongs to the device {credentials.device_id}")
        backoff = self._backoff()
        while True:
            try:
                if credentials is None:
                    credentials = await self._register()
                self._client.use_secret(credentials.device_secret)
                await self._client.sign_in()
                return
            except NotWelcome:
                code = self._config.activation_code
                if credentials is None or code is None or hash_of_code(code) == credentials.code_hash:
                    raise
                # The secret was rotated, and a person has given us the new code.
                credentials = None
            except GatewayUnavailable as unavailable:
                await self._pause("connecting", unavailable, backoff)

    async def _register(self) -> Credentials:
        code = self._config.activation_code
        if code is None:
            raise NotWelcome("this device has not registered yet, and has no activation code to do so")
        metadata = {
            "agent": f"aizen-gateway-agent {__version__}",
            "hostname": platform.node()[:253],
            "system": f"{platform.system()} {platform.release()}"[:200],
        }
        answer = await self._client.register(code, self._config.device_name, metadata)
        credentials = Credentials(
            device_id=self._config.device_id,
            device_secret=answer["deviceSecret"],
            customer_id=str(answer.get("customerId", "")),
            registered_at=str(answer.get("registeredAt", "")),
            code_hash=hash_of_code(code),
        )
        try:
            await self._disk(self._state.save_credentials, credentials)
        except OSError as error:
            # Not used yet, so the same code still registers again.
            raise StateUnusable(f"{self._config.state_dir} cannot keep the secret: {error.strerror}") from None
        self._announce("registered", {"device_id": self._config.device_id, "customer_id": credentials.customer_id})
        return credentials

    async def _claim(self) -> None:
        backoff = self._backoff()
        loop = asyncio.get_running_loop()
        while not self._stopping:
            await self._line.until_polling()
            room = await self._commands.room()
            if self._line.has_socket:
                continue
            asked_at = loop.time()
            try:
                found = await self._poll(min(room, 10))
            except (GatewayUnavailable, GatewayRefused) as trouble:
                await self._pause("claiming", trouble, backoff)
                continue
            backoff.reset()
            if not found and loop.time() - asked_at < _SOON_S and not self._stopping:
                # No long poll, or a gateway that answers at once because it drains: do not spin.
                await asyncio.sleep(random.uniform(_SOON_S, 2 * _SOON_S))

    async def _poll(self, limit: int) -> list[Any]:
        """One claim, its commands accepted. What is granted in the moment of a stop is not lost, but handed back."""
        polling = asyncio.create_task(
            self._client.claim(
                limit=limit,
                visibility_timeout_ms=self._config.visibility_timeout_ms,
                wait_ms=self._config.poll_wait_ms,
            )
        )
        found: list[Any] = []
        try:
            found = await asyncio.shield(polling)
        except asyncio.CancelledError:
            polling.cancel()
            await asyncio.wait({polling})
            if not polling.cancelled() and polling.exception() is None:
                found = polling.result()
            raise
        finally:
            for data in found:
                self._commands.accept(data)
        return found

    async def _beat(self) -> None:
        backoff = self._backoff()
        meter = await asyncio.to_thread(CpuMeter)
        await asyncio.sleep(_CPU_SAMPLE_S)
        while True:
            await self._line.until_ours()
            self._beat_now.clear()
            busy = self._commands.running >= self._config.concurrency
            status = HeartbeatStatus.BUSY if busy else HeartbeatStatus.ONLINE
            metrics = await asyncio.to_thread(heartbeat_metrics, meter)
            diagnostics = {"agent": __version__, "running": self._commands.running}
            body = {"status": status.value, "metrics": metrics, "diagnostics": diagnostics}
            try:
                answer = await self._line.heartbeat(body)
            except (GatewayUnavailable, GatewayRefused) as trouble:
                await self._pause("heartbeat", trouble, backoff)
                continue
            backoff.reset()
            self._announce("heartbeat", {"status": status.value, "pending_commands": answer.get("pendingCommands")})
            self._heartbeat_ms = _within_reason(answer.get("nextHeartbeat"))
            pause_ms = self._config.heartbeat_ms or self._heartbeat_ms
            await happens(self._beat_now, pause_ms / 1000 * random.uniform(0.9, 1.0))

    def _pace(self, heartbeat_ms: Any) -> None:
        """The gateway says how often it wants to hear from this device."""
        self._heartbeat_ms = _within_reason(heartbeat_ms)
        self._beat_now.set()

    def _on_open(self) -> None:
        self._commands.reports.hurry()

    async def _pause(self, doing: str, trouble: GatewayUnavailable | GatewayRefused, backoff: Backoff) -> None:
        pause_s = backoff.next(trouble.retry_after_s if isinstance(trouble, GatewayUnavailable) else None)
        self._announce("trouble", {"doing": doing, "reason": str(trouble), "again_in_s": round(pause_s, 2)})
        await asyncio.sleep(pause_s)

    def _backoff(self) -> Backoff:
        return Backoff(self._config.retry_base_ms / 1000, self._config.retry_cap_ms / 1000)


def _within_reason(asked: Any) -> float:
    """Milliseconds between heartbeats as the gateway asks for them: a second to an hour, and half a minute for none."""
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return _HEARTBEAT_MS
    return min(max(float(asked), 1000.0), 3_600_000.0)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log(event: str, fields: Mapping[str, object]) -> None:
    structlog.get_logger("aizen_gateway.agent").info(event, **fields)
