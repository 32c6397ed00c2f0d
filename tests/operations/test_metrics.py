"""The numbers of an instance, and the dashboard and alerts that are made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aizen_gateway.api.metrics import METRICS
from aizen_gateway.metrics import Metrics
from tests.support.clients import World, expect
from tests.support.gateway import RunningGateway
from tests.support.sockets import device_socket
from tests.support.waiting import eventually

DOCS = Path(__file__).parents[2] / "docs"
# Prometheus makes these of one histogram or counter.
_ENDINGS = re.compile(r"_(bucket|sum|count)$")


def names_of(metrics: Metrics) -> set[str]:
    """Every name that a query may use."""
    return {sample.name for family in metrics.registry.collect() for sample in family.samples} | {
        f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in metrics.registry.collect()
    }


@pytest.mark.parametrize("file", ["grafana/aizen-gateway.json", "prometheus/alerts.yml"])
def test_dashboard_and_alerts_ask_only_for_numbers_that_there_are(file: str) -> None:
    known = {_ENDINGS.sub("", name) for name in names_of(Metrics("1", "2"))}
    asked = {_ENDINGS.sub("", name) for name in re.findall(r"\baizen_[a-z_]+", (DOCS / file).read_text("utf-8"))}
    assert asked
    assert asked <= known


def test_the_dashboard_is_json_with_a_query_in_every_panel() -> None:
    dashboard = json.loads((DOCS / "grafana" / "aizen-gateway.json").read_text("utf-8"))
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


async def test_a_command_s_life_is_counted(world: World, gateway: RunningGateway) -> None:
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    await world.owner.submit(session["id"])
    (claimed,) = await device.claim()
    expect(await device.report(claimed), 200)
    value = gateway.app[METRICS].registry.get_sample_value
    assert value("aizen_commands_claimed_total") == 1
    assert value("aizen_commands_ended_total", {"status": "succeeded"}) == 1
    assert value("aizen_command_claim_latency_seconds_count") == 1
    assert value("aizen_command_result_latency_seconds_count") == 1
    assert value("aizen_redis_script_seconds_count")


async def test_sockets_are_counted_while_they_are_open_and_by_how_they_end(
    world: World, gateway: RunningGateway
) -> None:
    device = await world.device()
    value = gateway.app[METRICS].registry.get_sample_value
    async with device_socket(device) as first:
        assert value("aizen_sockets", {"kind": "device"}) == 1
        async with device_socket(device):
            assert await first.closed() == 4409

    async def superseded() -> float | None:
        return value("aizen_sockets_closed_total", {"code": "4409"})

    assert await eventually(superseded, bool) == 1


async def test_no_label_names_a_device_or_a_customer(world: World, gateway: RunningGateway) -> None:
    device = await world.device()
    await world.owner.status(device.device_id)
    shown = gateway.app[METRICS].text().decode()
    assert device.device_id not in shown
    assert world.customer_id not in shown
