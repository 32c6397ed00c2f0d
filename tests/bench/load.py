"""A load generator that costs little: requests are ready as bytes, and answers are read no further than needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

Reply = tuple[int, bytes]
# What one connection does: yields requests, is sent each one's status and body, and goes on until it returns.
Flow = Generator[bytes, Reply, None]

_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured: answers a second, and the seconds that the median and 99 of 100 took.

    `total` counts the answers before and after the measured time too, whose work the server has done as well.
    """

    per_second: float
    p50: float
    p99: float
    answers: int
    total: int

    @classmethod
    def of(cls, waits: Sequence[float], seconds: float, total: int | None = None) -> Load:
        """Sum up the waits of `seconds` seconds. Raises `TimeoutError` when there are none."""
        if not waits:
            raise TimeoutError("nothing was answered")
        return cls(len(waits) / seconds, share(waits, 0.5), share(waits, 0.99), len(waits), total or len(waits))


def share(values: Sequence[float], part: float) -> float:
    """The value under which `part` of `values` are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


@dataclass(slots=True)
class Times:
    """When each answer came, and the seconds that it took."""

    found: list[tuple[float, float]] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[float]:
        """The waits of the answers that came between two moments."""
        return [wait for at, wait in self.found if start <= at <= end]


class Connection(asyncio.Protocol):
    """One kept connection. `every` is the seconds between two requests, 0 for as fast as answers come."""

    def __init__(self, flow: Flow, times: Times, every: float = 0.0) -> None:
        self._flow = flow
        self._times = times.found
        self._every = every
        self._data = b""
        self._sent = self._due = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def begin(self, after: float = 0.0) -> None:
        """Send the first request `after` seconds."""
        self._due = self._loop.time() + after
        self._timer = self._loop.call_at(self._due, self._step, None)

    def stop(self) -> None:
        """End the connection, whatever is under way."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()

    def _step(self, reply: Reply | None) -> None:
        try:
            request = next(self._flow) if reply is None else self._flow.send(reply)
        except StopIteration:
            self._end(None)
        except Exception as error:
            self._end(error)
        else:
            self._sent = time.perf_counter()
            self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        self._transport.abort()
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        status = int(data[9:12])
        place = data.find(b"Content-Length: ", 0, end)
        length = int(data[place + 16 : data.find(b"\r", place)]) if place >= 0 else 0
        if len(data) < end + 4 + length:
            return
        self._data = b""
        now = time.perf_counter()
        self._times.append((now, now - self._sent))
        reply = status, data[end + 4 :]
        if self._every:
            # By the plan, not by the last answer: a slow answer does not lighten the load.
            self._due += self._every
            self._timer = self._loop.call_at(self._due, self._step, reply)
        else:
            self._step(reply)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def connect(port: int, flows: Sequence[Flow], times: Times, every: float = 0.0) -> list[Connection]:
    """Open a connection for each flow; none has begun."""
    loop = asyncio.get_running_loop()
    connections = []
    for flow in flows:
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await loop.create_connection(partial(Connection, flow, times, every), "127.0.0.1", port)
        connections.append(connection)
    return connections


async def drive(port: int, flows: Sequence[Flow], seconds: float, warm_up: float, per_second: float = 0.0) -> Load:
    """Run each flow on a connection of its own; what comes in the first `warm_up` seconds is not counted.

    `per_second` is the rate of all connections together, 0 for as fast as answers come. Raises what a flow raises,
    such as for an answer that it did not expect.
    """
    times = Times()
    every = len(flows) / per_second if per_second else 0.0
    connections = await connect(port, flows, times, every)
    started = time.perf_counter() + warm_up
    for number, connection in enumerate(connections):
        connection.begin(number * every / len(flows))
    await asyncio.wait(
        [connection.ended for connection in connections],
        timeout=warm_up + seconds,
        return_when=asyncio.FIRST_COMPLETED,
    )
    for connection in connections:
        if connection.ended.done():
            connection.ended.result()
            raise ConnectionError("the server closed a connection")
        connection.stop()
    await asyncio.wait([connection.ended for connection in connections])
    return Load.of(times.between(started, started + seconds), seconds, len(times.found))


def request(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """One request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {text}" for name, text in (headers or {}).items())]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
