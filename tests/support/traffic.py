"""All kinds of clients at work through one address, and a record of what they asked, did, heard and suffered."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import ClientError

from .clients import API, DeviceClient, Reply, World
from .portal import is_event, subscribe
from .sockets import Closed, SocketClient, device_socket, portal_socket

# Commands that a device has not finished, at most.
_AHEAD = 5
_PAUSE_S = 0.05
# Of a polling device: as agents in the field ask.
_WAIT_MS = 10_000


@dataclass(slots=True)
class Hearing:
    """What one portal heard, in order. It goes on where it was when its socket is lost."""

    events: list[dict[str, Any]] = field(default_factory=list)
    sockets: int = 0
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ids(self) -> list[str]:
        return [event["eventId"] for event in self.events]

    def succeeded(self) -> set[str]:
        """The commands that it saw succeed."""
        commands = (event["payload"]["command"] for event in self.events if event["type"] == "command_update")
        return {command["id"] for command in commands if command["status"] == "succeeded"}


@dataclass(slots=True)
class Traffic:
    """Clients of one customer. `failures` has a line for whatever a client had a right to and did not get."""

    world: World
    failures: list[str] = field(default_factory=list)
    requests: int = 0
    accepted: set[str] = field(default_factory=set)
    runs: Counter[str] = field(default_factory=Counter)
    # Seconds from the end of a socket until its client was greeted on the next.
    absences: list[float] = field(default_factory=list)
    hearings: list[Hearing] = field(default_factory=list)
    _submitting: bool = True
    _submitters: list[asyncio.Task[None]] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def flowing(self, *, each: int) -> AsyncIterator[None]:
        """Inside, `each` clients of every kind are at work; a client that fails altogether fails the block."""
        self.hearings = [Hearing() for _ in range(each)]
        for hearing in self.hearings:
            self._start(self._listen(hearing))
        await asyncio.gather(*(hearing.heard.wait() for hearing in self.hearings))
        for number in range(each):
            self._start(self._read())
            for attend in (self._poll, self._attend):
                device = await self.world.device()
                room = asyncio.Semaphore(_AHEAD)
                self._start(attend(device, room))
                session = await self.world.owner.open_session(device.device_id)
                submit = self._submit(session["id"], room, remediation=number % 2 == 1)
                self._submitters.append(self._start(submit))
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def goes_on(self) -> None:
        """Wait until another few commands have been run."""
        enough = self.runs.total() + 5 * len(self.hearings)
        while self.runs.total() < enough:
            assert not self.failures, self.failures
            await asyncio.sleep(_PAUSE_S)

    async def submit_no_more(self) -> None:
        """Let users end what they are about to submit or to approve; everybody else goes on."""
        self._submitting = False
        await asyncio.wait(self._submitters)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"a client gave up: {error!r}")

    async def _ask(self, what: str, call: Awaitable[Reply], status: int) -> Any:
        """The body of the answer that the call must have; None, and a failure, for any other."""
        self.requests += 1
        try:
            reply = await call
        except (ClientError, OSError, TimeoutError) as error:
            self.failures.append(f"{what}: {error!r}")
            return None
        if reply.status != status:
            self.failures.append(f"{what}: {reply.status} {reply.body}")
            return None
        return reply.body

    async def _read(self) -> None:
        """A portal's pages."""
        while True:
            page = random.choice(("devices", "sessions", "approvals", "audit?limit=5"))
            await self._ask(page, self.world.owner.get(f"{API}/customer/{page}"), 200)
            await asyncio.sleep(_PAUSE_S)

    async def _submit(self, session_id: str, room: asyncio.Semaphore, *, remediation: bool) -> None:
        """A user, who approves remediations too."""
        path = f"{API}/customer/sessions/{session_id}"
        while self._submitting:
            await room.acquire()
            body = {"type": "restart_dhcp" if remediation else "ping"}
            call = self.world.owner.post(f"{path}/commands", body, Idempotency_Key=str(uuid4()))
            if (answer := await self._ask("submit", call, 201)) is not None:
                command_id = answer["command"]["id"]
                self.accepted.add(command_id)
                if remediation:
                    decision = {"approved": True, "commandId": command_id}
                    await self._ask("approve", self.world.admin.post(f"{path}/approve", decision), 200)
            await asyncio.sleep(_PAUSE_S)

    async def _poll(self, device: DeviceClient, room: asyncio.Semaphore) -> None:
        """A device without a socket."""
        while True:
            call = device.post(f"{API}/device/commands/claim", {"waitMs": _WAIT_MS})
            for command in (await self._ask("claim", call, 200) or {"commands": []})["commands"]:
                self.runs[command["id"]] += 1
                await self._ask("result", device.report(command), 200)
                room.release()

    async def _attend(self, device: DeviceClient, room: asyncio.Semaphore) -> None:
        """A device with a socket. It drops what it has run already, and reports until it is told that that arrived."""
        unheard: dict[str, dict[str, Any]] = {}

        async def talk(socket: SocketClient) -> None:
            for result in tuple(unheard.values()):
                await socket.send("command_result", result, result["commandId"])
            while True:
                frame = await socket.receive()
                if frame["type"] == "command":
                    command = frame["payload"]
                    if not self.runs[command["id"]]:
                        self.runs[command["id"]] += 1
                        room.release()
                    unheard[command["id"]] = result = _result_of(command)
                    await socket.send("command_result", result, command["id"])
                elif frame["type"] == "ack":
                    unheard.pop(frame["requestId"], None)
                elif frame["type"] == "error" and frame["payload"]["code"] != "INVALID_CLAIM_TOKEN":
                    # That one was about a claim that had been given back: the command comes again.
                    self.failures.append(f"device socket: {frame}")

        await self._reconnecting(lambda: device_socket(device), talk)

    async def _listen(self, hearing: Hearing) -> None:
        """A portal that misses nothing."""

        async def talk(socket: SocketClient) -> None:
            last = hearing.events[-1]["eventId"] if hearing.events else None
            answer = await subscribe(socket, last_event_id=last)
            if last is not None and not answer["complete"]:
                self.failures.append(f"portal: {answer}")
            hearing.sockets += 1
            hearing.heard.set()
            while True:
                frame = socket.earlier.pop(0) if socket.earlier else await socket.receive()
                if is_event(frame):
                    hearing.events.append(frame)

        await self._reconnecting(lambda: portal_socket(self.world.owner), talk)

    async def _reconnecting(self, connect: Callable[[], Any], talk: Callable[[SocketClient], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        while True:
            try:
                async with connect() as socket:
                    if lost_at is not None:
                        self.absences.append(loop.time() - lost_at)
                    await talk(socket)
            except Closed as closed:
                if closed.code != 1001:
                    self.failures.append(f"socket closed {closed.code}")
            except (ClientError, OSError) as error:
                self.failures.append(f"socket: {error!r}")
            lost_at = loop.time()
            await asyncio.sleep(random.uniform(0, 0.2))


def _result_of(command: dict[str, Any]) -> dict[str, Any]:
    return {
        "commandId": command["id"],
        "claimToken": command["claimToken"],
        "status": "success",
        "executedAt": "2026-01-02T03:04:05.678Z",
        "duration": 1,
    }
