"""Reference agents in this process, at real gateways, and what they are given to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aizen_gateway.dev.agent import AgentConfig, run_agent

from .clients import World
from .gateway import RunningGateway
from .waiting import eventually

ENDED = ("succeeded", "failed", "timed_out", "canceled", "expired", "undeliverable")


@dataclass(slots=True)
class Agent:
    """A running agent and what it has said; `when` is called the moment it says so. `end` may be called twice."""

    config: AgentConfig
    said: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    when: dict[str, Callable[[], None]] = field(default_factory=dict)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(run_agent(self.config, stop=self._stop, announce=self._hear))

    def _hear(self, event: str, fields: Mapping[str, object]) -> None:
        self.said.append((event, dict(fields)))
        if event in self.when:
            self.when[event]()
        self._more.set()

    async def says(self, event: str, times: int = 1, **fields: object) -> None:
        """Wait until it has said `event` with these fields so many times."""
        while self.times(event, **fields) < times:
            self._more.clear()
            assert self._task is not None
            assert not self._task.done(), self.said
            await self._more.wait()

    def times(self, event: str, **fields: object) -> int:
        """How often it has said `event` with these fields."""
        return sum(name == event and fields.items() <= told.items() for name, told in self.said)

    async def end(self) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def result(self) -> None:
        """Wait for what ends it by itself, and raise that."""
        task, self._task = self._task, None
        assert task is not None
        await task


Launch = Callable[..., Agent]


@pytest.fixture
def use_socket() -> bool:
    """Whether agents may use a socket; a module that tries both ways overrides it."""
    return True


@pytest.fixture
async def launch(tmp_path: Path, gateway: RunningGateway, use_socket: bool) -> AsyncIterator[Launch]:
    """Call it with a device id for an agent at the gateway, or at `base_url`; its state stays between launches.

    `name` gives the state folder another name than the device's.
    """
    async with AsyncExitStack() as stack:

        def start(device_id: str, name: str | None = None, **settings: Any) -> Agent:
            quick = {"poll_wait_ms": 500, "retry_base_ms": 50, "retry_cap_ms": 500, "stop_grace_ms": 500}
            known = {"base_url": gateway.url, "use_socket": use_socket, **quick, **settings}
            agent = Agent(AgentConfig(device_id, tmp_path / (name or device_id), **known))
            agent.start()
            stack.push_async_callback(agent.end)
            return agent

        yield start


async def provisioned(world: World, device_id: str) -> tuple[str, str]:
    """A device's activation code, and an open session with it."""
    code = (await world.owner.provision(device_id))["activationCode"]
    return code, (await world.owner.open_session(device_id))["id"]


async def ended(world: World, command: Mapping[str, Any]) -> dict[str, Any]:
    """The command when it has ended."""
    return dict(await eventually(lambda: world.owner.command(command), lambda found: found["status"] in ENDED, 30))


async def approved(world: World, session: str, **fields: Any) -> dict[str, Any]:
    """A remediation that the admin has approved."""
    command = await world.owner.submit(session, **fields)
    decided = await world.admin.decide(session, commandId=command["id"], digest=command["digest"])
    assert decided.status == 200
    return dict(command)


@dataclass(slots=True)
class Silence:
    """A web server that says nothing, so that a check of it goes on until `ended` is set."""

    url: str
    ended: asyncio.Event

    async def check(self, world: World, session: str, **fields: Any) -> dict[str, Any]:
        """Submit a diagnostic that takes that long."""
        parameters = {"url": self.url, "timeoutMs": 60_000}
        return dict(await world.owner.submit(session, "http_check", parameters=parameters, **fields))


@pytest.fixture
async def silence() -> AsyncIterator[Silence]:
    ended = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with server:
        yield Silence(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", ended)
        ended.set()
