"""How soon everything works again: every kind of call, at every gateway, from the moment the fault has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import ClientError

from tests.support.clients import API, Client
from tests.support.sockets import Closed, device_socket, portal_socket

from .calls import Caller
from .crowd import Crowd
from .devices import Device
from .ledger import RECOVERS_S, Disturbance
from .stage import Gateway

_AGAIN_S = 0.1
# Seconds after which a call that never works is given up.
_GIVE_UP_S = RECOVERS_S + 20.0


@dataclass(slots=True)
class Probe:
    """Tries everything at one gateway. `found` is how many seconds after the end of the fault a kind first worked."""

    crowd: Crowd
    gateway: Gateway
    device: Device
    healed: float
    found: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Try until everything has worked."""
        async with asyncio.timeout(_GIVE_UP_S):
            # Its 503 is no error of the API's form.
            await self._first("readyz", lambda: Client(self.device.client.http, self.gateway.url).get("/readyz"))
            await self._device_calls()
            await self._people_calls()
            await self._command("diagnostic")
            await self._command("remediation")
            await asyncio.gather(self._device_socket(), self._portal_socket())

    def _caller(self) -> Caller:
        """One that asks this gateway alone."""
        return Caller(self.crowd.ledger, [self.gateway], 0, self.device.caller.signed_in_at)

    async def _device_calls(self) -> None:
        device = Device(self.device.client, self._caller(), self.device.lease_ms)
        await device.sign_in()
        self._works("sign in")
        self.device.caller.signed_in_at = device.caller.signed_in_at
        for kind, body in {"heartbeat": {"status": "online"}, "claim": {"waitMs": 50}}.items():
            path = "commands/claim" if kind == "claim" else kind
            await self._first(kind, lambda k=kind, p=path, b=body: device.call(k, p, b))  # type: ignore[misc]

    async def _people_calls(self) -> None:
        owner, customer = self.crowd.world.owner, f"{API}/customer"
        for kind, path in {
            "devices": f"{customer}/devices",
            "status": f"{customer}/devices/{self.device.id}/status",
            "session": f"{customer}/sessions/{self.device.session_id}",
            "audit": f"{customer}/audit?limit=5",
        }.items():
            await self._first(kind, lambda k=kind, p=path: self._caller().once(k, owner, "GET", p))  # type: ignore[misc]
        device_id = f"spare-{uuid4()}"
        await self._caller().until("provision", owner, "POST", f"{customer}/devices/provision", {"deviceId": device_id})
        self._works("provision")

    async def _first(self, kind: str, call: Callable[[], Awaitable[Any]]) -> None:
        while True:
            with suppress(ClientError, OSError):
                if (reply := await call()) is not None and reply.status == 200:
                    self._works(kind)
                    return
            await asyncio.sleep(_AGAIN_S)

    async def _command(self, kind: str) -> None:
        """A command's whole way."""
        await self.crowd.submit(self.device, self._caller(), kind)
        self._works("submit" if kind == "diagnostic" else "approve")
        device = Device(self.device.client, self._caller(), self.device.lease_ms)
        wish = {"waitMs": 2_000, "visibilityTimeout": self.device.lease_ms}
        while True:
            reply = await device.call("claim", "commands/claim", wish)
            if reply is not None and reply.status == 200 and reply.body["commands"]:
                break
            await asyncio.sleep(_AGAIN_S)
        self._works(f"{kind} claimed")
        (claimed,) = reply.body["commands"]
        result = device.begin(claimed)
        while True:
            reply = await device.call("result", f"commands/{claimed['id']}/result", result)
            if reply is not None and reply.status == 200:
                break
            await asyncio.sleep(_AGAIN_S)
        device.heard(claimed, result, reply)
        self._works("result")

    async def _device_socket(self) -> None:
        async def greeted() -> None:
            async with device_socket(self.device.client, "?prefetch=0", url=self.gateway.url) as socket:
                await socket.ask("heartbeat", {"status": "online"}, answer="heartbeat_ack")

        await self._socket("device socket", greeted)

    async def _portal_socket(self) -> None:
        async def greeted() -> None:
            async with portal_socket(self.crowd.world.owner, url=self.gateway.url) as socket:
                await socket.ask("subscribe", {"room": "customer"}, answer="subscribed")

        await self._socket("portal socket", greeted)

    async def _socket(self, kind: str, greeted: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await greeted()
            except (AssertionError, ClientError, OSError, TimeoutError, Closed):
                await asyncio.sleep(_AGAIN_S)
            else:
                self._works(kind)
                return

    def _works(self, kind: str) -> None:
        self.found.setdefault(kind, asyncio.get_running_loop().time() - self.healed)


async def recovery(crowd: Crowd, disturbance: Disturbance) -> tuple[str, float]:
    """Try everything everywhere; return what took longest to work, and its seconds. What took too long is wrong."""
    assert disturbance.healed is not None
    probes = [
        Probe(crowd, gateway, device, disturbance.healed)
        for gateway, device in zip(crowd.stage.gateways, crowd.spare, strict=True)
    ]
    for probe, outcome in zip(
        probes, await asyncio.gather(*(probe.run() for probe in probes), return_exceptions=True), strict=True
    ):
        if isinstance(outcome, TimeoutError):
            crowd.ledger.wrong(f"after {disturbance.name} {probe.gateway.name} never worked again in full")
        elif outcome is not None:
            raise outcome
    found = [(seconds, f"{kind} at {probe.gateway.name}") for probe in probes for kind, seconds in probe.found.items()]
    for seconds, what in found:
        if seconds > RECOVERS_S:
            crowd.ledger.wrong(f"after {disturbance.name} {what} worked again only after {seconds:.1f} s")
    seconds, what = max(found, default=(0.0, "nothing"))
    return what, seconds
