"""A device with an open session: what most tests of the queue begin with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from .clients import DeviceClient, World, expect
from .gateway import RunningGateway


@dataclass(slots=True)
class Line:
    """A device, and the session in which its customer gives it commands."""

    world: World
    device: DeviceClient
    session_id: str

    @classmethod
    async def open(cls, world: World) -> Line:
        device = await world.device()
        return cls(world, device, (await world.owner.open_session(device.device_id))["id"])

    async def submit(self, type: str = "ping", **fields: Any) -> Any:
        """Submit a command and return it."""
        return await self.world.owner.submit(self.session_id, type, **fields)

    async def approved(self, type: str = "restart_dhcp", **fields: Any) -> Any:
        """Submit a remediation, approve it, and return it."""
        command = await self.submit(type, **fields)
        expect(await self.world.admin.decide(self.session_id, commandId=command["id"]), 200)
        return await self.world.owner.command(command)

    async def claimed(self, type: str = "ping", **fields: Any) -> Any:
        """Submit a command to an empty queue and claim it, for 300 s."""
        command = await self.submit(type, **fields)
        (claimed,) = await self.device.claim()
        assert claimed["id"] == command["id"]
        return claimed

    async def seen(self, command: Any) -> Any:
        """A command as its customer now sees it."""
        return await self.world.owner.command({"sessionId": self.session_id, **command})

    def at(self, gateway: RunningGateway) -> DeviceClient:
        """The device with the same token at another instance."""
        return replace(self.device, url=gateway.url)


@pytest.fixture
async def line(world: World) -> Line:
    """A device with an open diagnostic session, at one instance with the default settings."""
    return await Line.open(world)
