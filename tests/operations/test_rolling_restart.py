"""Instances behind nginx are replaced one after another while everybody works, and nobody notices (section 7)."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import ClientSession, TCPConnector

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, World
from tests.support.nginx import StartNginx
from tests.support.processes import StartGatewayProcess
from tests.support.programs import WITH_INSTALLATION, stable_port
from tests.support.traffic import Traffic
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(WITH_INSTALLATION)

_TIMES = 2
_BACK_WITHIN_S = 5.0
_NO_LIMITS = {f"AIZEN_RATE_LIMIT_{of}": "0" for of in ("DEVICE", "CUSTOMER", "AUTH", "SOCKET")}


async def test_a_rolling_restart_drops_nothing(
    start_gateway_process: StartGatewayProcess, start_nginx: StartNginx, database: Database
) -> None:
    ports = [stable_port(), stable_port()]
    instances = [await start_gateway_process(AIZEN_PORT=str(port), **_NO_LIMITS) for port in ports]
    nginx = await start_nginx(ports)
    async with ClientSession(connector=TCPConnector(ssl=False, limit=0)) as http:
        traffic = Traffic(await World.create(nginx.url, http, database))
        async with traffic.flowing(each=3):
            for _ in range(_TIMES):
                for number, port in enumerate(ports):
                    await asyncio.sleep(0.5)
                    assert await instances[number].run.stop() == 0
                    instances[number] = await start_gateway_process(AIZEN_PORT=str(port), **_NO_LIMITS)
            traffic.submitting = False
            await eventually(lambda: _everybody_heard(traffic), bool)
    print(
        traffic.failures,
        traffic.requests,
        len(traffic.accepted),
        len(traffic.absences),
        max(traffic.absences),
        [len(h.events) for h in traffic.hearings],
        [h.sockets for h in traffic.hearings],
    )
    assert traffic.failures == []
    # What was accepted was run, once each.
    assert traffic.runs == dict.fromkeys(traffic.accepted, 1)
    statuses = await database.fetch("select distinct status from aizen.commands")
    assert [row["status"] for row in statuses] == ["succeeded"]
    # Nobody missed an event, or heard one twice, or in another order.
    assert len({tuple(hearing.ids) for hearing in traffic.hearings}) == 1
    for hearing in traffic.hearings:
        assert hearing.ids == sorted(set(hearing.ids), key=hearing.ids.index)
        assert hearing.succeeded() == traffic.accepted
        assert hearing.sockets > 1
    assert max(traffic.absences) < _BACK_WITHIN_S


async def _everybody_heard(traffic: Traffic) -> bool:
    return all(hearing.succeeded() == traffic.accepted for hearing in traffic.hearings)
