"""Everybody outside: customers with their devices and portals, who come together, work for a while, and leave."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import uuid4

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import API, CustomerClient, World

from .devices import Device
from .ledger import Ledger, Manner
from .portals import Portal
from .stage import Stage

CUSTOMERS = 20
# Clients that are made, or come, at the same time.
_AT_ONCE = 32
# Of diagnostics, as many as may be: what is pushed to sockets that are not read comes again and again.
_MOST_DELIVERIES = 20
# Commands of one device that have not been acknowledged, at most.
_MOST_OPEN = 50
# While it is quiet: devices, and commands a second.
_QUIET_DEVICES = 20
QUIET_RATE = 20.0
# Seconds for everything to be there, for steady clients to finish, and for what is open to be collected.
_PATIENCE = 90.0
_RETRY = 0.5
_LOOK_EVERY = 0.25

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many of whom. `faulty` is the share of clients that are frozen or flapping, half of them each; `rate` is
    commands a second."""

    devices: int
    portals: int
    faulty: float
    rate: float
    lease_ms: int

    def manner(self, number: int) -> Manner:
        """How the client with this number behaves: faulty ones are spread evenly."""
        if int((number + 1) * self.faulty) == int(number * self.faulty):
            return Manner.STEADY
        return Manner.FROZEN if int(number * self.faulty) % 2 else Manner.FLAPPING


@dataclass(slots=True)
class Crowd:
    """All clients, and the ledger of what they are owed. `quiet` are the commands of the quiet time."""

    stage: Stage
    plan: Plan
    ledger: Ledger = field(default_factory=Ledger)
    devices: list[Device] = field(default_factory=list)
    portals: list[Portal] = field(default_factory=list)
    worlds: dict[str, World] = field(default_factory=dict)
    quiet: frozenset[str] = frozenset()

    @classmethod
    @asynccontextmanager
    async def made(cls, stage: Stage, plan: Plan) -> AsyncIterator[Crowd]:
        """Inside, all are provisioned, registered and signed in, and nobody is connected."""
        async with AsyncExitStack() as stack:
            connector = TCPConnector(limit=0)
            http = await stack.enter_async_context(ClientSession(connector=connector, timeout=ClientTimeout(total=60)))
            database = Database(PostgresOptions(stage.database_url, pool_size=2))
            stack.push_async_callback(database.close)
            crowd = cls(stage, plan)
            urls = [gateway.url for gateway in stage.gateways]
            worlds = [await World.create(urls[n % len(urls)], http, database) for n in range(CUSTOMERS)]

            async def make(number: int) -> None:
                world = worlds[_customer(number)]
                client = await world.device(f"soak-{number}")
                session = await world.owner.open_session(client.device_id)
                manner = plan.manner(number)
                lease = None if manner is Manner.STEADY else plan.lease_ms
                crowd.devices.append(Device(client, session["id"], manner, lease, urls, crowd.ledger))
                crowd.worlds[client.device_id] = world

            await each(range(plan.devices), make)
            for number in range(plan.portals):
                world = worlds[_customer(number)]
                portal = Portal(world.owner, world.customer_id, plan.manner(number), urls, crowd.ledger)
                crowd.portals.append(portal)
            yield crowd

    async def be_quiet(self, seconds: float) -> None:
        """A few devices come, each to another gateway than the one its commands are submitted to."""
        steady = [device for device in self.devices if device.manner is Manner.STEADY][:_QUIET_DEVICES]
        far = [
            replace(device, urls=[url for url in device.urls if url != self._owner(device).url], there=asyncio.Event())
            for device in steady
        ]
        await self._together(far, (), seconds, QUIET_RATE)
        self.quiet = frozenset(self.ledger.submitted)

    async def wave(self, seconds: float) -> None:
        """All come, work for `seconds`, finish, and leave; then what is still open is collected."""
        await self._together(self.devices, self.portals, seconds, self.plan.rate)

    async def _together(
        self, devices: Sequence[Device], portals: Sequence[Portal], seconds: float, rate: float
    ) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            async with self._in_time("clients did not come"):
                await self._come([*portals, *devices], tasks)
            await self._submit(devices, seconds, rate)
            async with self._in_time("devices did not finish"):
                await self._finish(devices)
            async with self._in_time("portals were not told of the end of commands", _PATIENCE / 3):
                await until(lambda: not self._unheard(portals))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with self._in_time("commands could not be collected"):
            await each([device for device in devices if self.ledger.waiting[device.id]], Device.collect)

    @asynccontextmanager
    async def _in_time(self, else_what: str, seconds: float = _PATIENCE) -> AsyncIterator[None]:
        """Give up what takes longer than `seconds`, and go on: it is a failure."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self.ledger.failures.append(f"{else_what} within {seconds:.0f} s")

    def _owner(self, device: Device) -> CustomerClient:
        return self.worlds[device.id].owner

    async def _come(self, clients: Sequence[Device | Portal], tasks: list[asyncio.Task[None]]) -> None:
        async def come(client: Device | Portal) -> None:
            client.there.clear()
            tasks.append(task := asyncio.create_task(client.attend()))
            there = asyncio.create_task(client.there.wait())
            await asyncio.wait((task, there), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                there.cancel()
                task.result()

        await each(clients, come)

    async def _submit(self, devices: Sequence[Device], seconds: float, rate: float) -> None:
        """Submit at the rate, whatever the answers take."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                due = number / rate
                if due >= seconds:
                    break
                await asyncio.sleep(begin + due - loop.time())
                device = random.choice(devices)
                if len(self.ledger.waiting[device.id]) < _MOST_OPEN:
                    group.create_task(self._submit_one(device))

    async def _submit_one(self, device: Device) -> None:
        """As a careful client: with a key of its own, the same call again until there is an answer."""
        owner = self._owner(device)
        body = {"type": "ping", "parameters": {"host": "127.0.0.1"}, "maxDeliveries": _MOST_DELIVERIES}
        key, asked_at = str(uuid4()), time.monotonic()
        path = f"{API}/customer/sessions/{device.session_id}/commands"
        while time.monotonic() < asked_at + _PATIENCE:
            try:
                reply = await owner.post(path, body, Idempotency_Key=key)
            except (ClientError, OSError, TimeoutError) as error:
                self.ledger.failures.append(f"submit: {type(error).__name__}")
            else:
                if reply.status == 201:
                    self.ledger.accepted(reply.body["command"]["id"], device.id, asked_at)
                    return
                self.ledger.failures.append(f"submit: {reply.status} {reply.code}")
            await asyncio.sleep(_RETRY)

    async def _finish(self, devices: Sequence[Device]) -> None:
        """Wait until the devices that read have reported everything."""
        reading = [device.id for device in devices if device.manner is not Manner.FROZEN]
        await until(lambda: not any(self.ledger.waiting[device_id] for device_id in reading))

    def _unheard(self, portals: Sequence[Portal]) -> int:
        """How many ends of commands the portals that read have not heard of, since they first came."""
        ended: dict[str, set[str]] = defaultdict(set)
        for command_id in self.ledger.acknowledged & self.ledger.submitted.keys() - self.quiet:
            ended[self.worlds[self.ledger.submitted[command_id]].customer_id].add(command_id)
        reading = (portal for portal in portals if portal.manner is not Manner.FROZEN)
        return sum(len(ended[portal.customer_id] - portal.succeeded) for portal in reading)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that nothing tells of."""
    while not holds():  # noqa: ASYNC110 - it is a sum over all clients
        await asyncio.sleep(_LOOK_EVERY)


def _customer(number: int) -> int:
    """Whose client it is: such that each customer has clients of every manner."""
    return (number + number // CUSTOMERS) % CUSTOMERS


async def each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Do `work` with all items, some of them at once; the first failure ends it, and is raised."""
    left = iter(items)

    async def go_on() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(go_on())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
