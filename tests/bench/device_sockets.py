"""Sockets that open and sockets that are idle: handshakes a second, memory, and connections to Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from aiohttp import ClientSession

from .load import Load
from .outcome import Check, Figure, Figures, Row, medians
from .plan import Plan
from .raw_sockets import open_sockets, sockets
from .stage import Device, Server, Stage

_AT_ONCE = 64
_ACCEPTS = 0.70
_KIB_A_SOCKET = 22.0
_REDIS_CONNECTIONS = 8
# Sockets that come and go before memory is looked at: what a process keeps that has worked is not theirs.
_WARM_UP = 200
# Portals join as they come, not all at once: so many, and so many seconds apart.
_JOINS_AT_ONCE, _BETWEEN_S = 32, 0.02
_NO_SOCKETS = 'aizen_sockets{kind="device"} 0.0'
_LOOK_S = 0.1
# The part of a core that a server uses which has nothing to do.
_IDLE = 0.15
_PATIENCE_S = 30.0


def device_path(device: Device) -> str:
    """Where a device opens its socket."""
    return f"/ws/device?token={device.token}"


async def measure_accepts(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """Two rows: devices that come for the first time and are announced as online, and the same again soon after."""
    async with stage.pair() as (gateway, ceiling):
        first: dict[str, list[Figures]] = {"gateway": [], "ceiling": []}
        again: dict[str, list[Figures]] = {"gateway": [], "ceiling": []}
        for run in range(plan.runs):
            for server in (ceiling, gateway):
                devices = await stage.devices(f"{server.name}-accept-{run}", plan.handshakes)
                first[server.name].append(await _accepts(stage, server, devices))
                await _left(server)
                again[server.name].append(await _accepts(stage, server, devices))
                await _left(server)
                await asyncio.sleep(plan.gone)
                await _at_rest(server)
        for path, title, found in (
            ("accepts", "device sockets, reconnecting", again),
            ("arrivals", "device sockets, new arrivals", first),
        ):
            of_gateway, of_ceiling = medians(found["gateway"]), medians(found["ceiling"])
            ratio = of_gateway[Figure.RATE] / of_ceiling[Figure.RATE]
            checks = (Check("of the ceiling", ratio, _ACCEPTS, at_least=True),)
            yield Row(path, title, f"{_AT_ONCE} at once", _AT_ONCE, of_gateway, of_ceiling, checks)


async def _accepts(stage: Stage, server: Server, devices: Sequence[Device]) -> Figures:
    """Open a socket for each device, let all stay until the last one is greeted, and measure that."""
    before, started = (server.cpu(), stage.valkey_cpu(), stage.postgres_cpu()), time.perf_counter()
    opened = await open_sockets(server.port, [device_path(device) for device in devices], _AT_ONCE)
    seconds = time.perf_counter() - started
    after = server.cpu(), stage.valkey_cpu(), stage.postgres_cpu()
    for socket in opened:
        socket.cut()
    load = Load.of([socket.greeted_after for socket in opened], seconds)
    costs = [(now - then) / len(devices) * 1e6 for then, now in zip(before, after, strict=True)]
    return {
        Figure.RATE: load.per_second,
        Figure.P50: load.p50 * 1000,
        Figure.P99: load.p99 * 1000,
        Figure.CPU: costs[0],
        Figure.VALKEY: costs[1],
        Figure.POSTGRES: costs[2],
    }


async def _left(server: Server) -> None:
    """Return when a server has done with all its sockets; soon enough for devices that come back to be as before."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    async with asyncio.timeout(_PATIENCE_S), ClientSession() as http:
        while server.name == "gateway":
            async with http.get(url) as answer:
                if _NO_SOCKETS in await answer.text():
                    break
            await asyncio.sleep(_LOOK_S)
    await _at_rest(server)


async def _at_rest(server: Server) -> None:
    """Return when a server does nothing that the next measurement would have to wait for."""
    async with asyncio.timeout(_PATIENCE_S):
        used = 0.0
        while (now := server.cpu()) > used + _LOOK_S * _IDLE:
            used = now
            await asyncio.sleep(_LOOK_S)


async def measure_idle(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """A row for each kind of sockets and each number of them: what one holds, and what it costs when nothing happens.

    The connections to Redis are of the gateway, whatever the sockets.
    """
    devices = await stage.devices("idle", max(plan.idle) + _WARM_UP)
    portal = f"/ws/customer?token={stage.jwt}"
    kinds = (
        ("device", [device_path(device) for device in devices]),
        ("customer", [portal] * (max(plan.idle) + _WARM_UP)),
    )
    for kind, paths in kinds:
        async with stage.pair() as (gateway, ceiling):
            bare = await _idle(stage, plan, ceiling, paths)
            ours = await _idle(stage, plan, gateway, paths)
        for number in (0, *plan.idle):
            checks = []
            if number:
                checks.append(Check("KiB a socket", ours[number][Figure.MEMORY], _KIB_A_SOCKET))
            checks.append(Check("connections", ours[number][Figure.CONNECTIONS], _REDIS_CONNECTIONS))
            load, title = f"{number} idle", f"{kind} sockets at rest"
            yield Row(f"idle-{kind}", title, load, number, ours[number], bare[number], tuple(checks))


async def _idle(stage: Stage, plan: Plan, server: Server, paths: Sequence[str]) -> dict[int, Figures]:
    """The figures of `server` by the number of its sockets."""
    found: dict[int, Figures] = {}
    async with sockets(server.port, paths[:_WARM_UP]):
        await asyncio.sleep(plan.settle)
    await asyncio.sleep(plan.settle)
    at_rest, so_far = server.rss(), 0
    async with AsyncExitStack() as stack:
        for number in (0, *plan.idle):
            more = paths[_WARM_UP + so_far : _WARM_UP + number]
            opened = await stack.enter_async_context(sockets(server.port, more))
            joining = opened if server.name == "gateway" and "customer" in paths[0] else []
            for start in range(0, len(joining), _JOINS_AT_ONCE):
                for socket in joining[start : start + _JOINS_AT_ONCE]:
                    socket.tell(b'{"type":"join_rooms"}')
                await asyncio.sleep(_BETWEEN_S)
            so_far = number
            await asyncio.sleep(plan.settle)
            cpu = server.cpu()
            await asyncio.sleep(plan.settle)
            figures = {
                Figure.SHARE: (server.cpu() - cpu) / plan.settle,
                Figure.CONNECTIONS: float(server.connections_to(stage.valkey_port)),
            }
            if number:
                figures[Figure.MEMORY] = (server.rss() - at_rest) / number / 1024
            found[number] = figures
    return found
