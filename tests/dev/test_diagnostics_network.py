"""ping, traceroute, interfaces, routes, arp and connectivity against this machine's own loopback and tables."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aizen_gateway.dev.diagnostics import CannotRun, Parameters, diagnostics_table
from aizen_gateway.dev.diagnostics.icmp import IcmpSocket

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_RAW_SOCKETS = """
import asyncio, json, os, sys
from aizen_gateway.dev.diagnostics import CannotRun, Parameters, diagnostics_table
async def main():
    os.environ["PATH"] = "/nowhere"
    try:
        outcome = await diagnostics_table()[sys.argv[1]](Parameters({"host": "127.0.0.1", "count": 1}))
        print(json.dumps(outcome.result))
    except CannotRun as refusal:
        print(json.dumps({"refusal": str(refusal)}))
asyncio.run(main())
"""


async def run(name: str, /, **parameters: Any) -> dict[str, Any]:
    outcome = await diagnostics_table()[name](Parameters(parameters))
    assert outcome.output
    json.dumps(outcome.result, allow_nan=False)
    return outcome.result


def kernel_table(name: str, *, column: int) -> set[str]:
    return {line.split()[column] for line in Path("/proc/net", name).read_text().splitlines()[1:]}


def needs_loopback(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        pytest.skip(f"this machine has no {host}")


async def needs_icmp(host: str) -> None:
    needs_loopback(host)
    try:
        with IcmpSocket(socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError:
        pytest.skip("this machine allows no ICMP sockets")


@pytest.fixture
async def open_port() -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_ping_of_loopback_gets_every_echo_back(host: str) -> None:
    await needs_icmp(host)
    result = await run("ping", host=host, count=3, intervalMs=200)
    assert (result["reachable"], result["sent"], result["received"], result["lossPercent"]) == (True, 3, 3, 0)
    assert [reply["sequence"] for reply in result["replies"]] == [1, 2, 3]
    assert 0 < result["rttMs"]["min"] <= result["rttMs"]["avg"] <= result["rttMs"]["max"]


async def test_two_pings_at_once_keep_their_replies_apart() -> None:
    await needs_icmp("127.0.0.1")
    both = await asyncio.gather(*(run("ping", host="127.0.0.1", count=3, intervalMs=200) for _ in range(2)))
    assert [result["received"] for result in both] == [3, 3]


async def test_a_name_that_does_not_resolve_cannot_be_pinged() -> None:
    with pytest.raises(CannotRun, match="does not resolve"):
        await run("ping", host="127.0.0.1", family="6")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_traceroute_reaches_loopback_in_one_hop(host: str) -> None:
    needs_loopback(host)
    result = await run("traceroute", host=host, probes=2)
    assert result["reached"] is True
    assert [hop["addresses"] for hop in result["hops"]] == [[host]]
    assert all(ms > 0 for ms in result["hops"][0]["rttMs"])


async def without_raw_sockets(name: str) -> dict[str, Any]:
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("only root can give the right to raw sockets away, and needs setpriv for it")
    process = await asyncio.create_subprocess_exec(
        *(setpriv, "--bounding-set=-net_raw", sys.executable, "-c", WITHOUT_RAW_SOCKETS, name),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    answer: dict[str, Any] = json.loads(said)
    return answer


async def test_traceroute_without_raw_sockets_reads_the_error_queue_instead() -> None:
    result = await without_raw_sockets("traceroute")
    assert (result["method"], result["reached"]) == ("udp", True)


async def test_ping_without_any_right_to_icmp_says_why_it_cannot_run() -> None:
    result = await without_raw_sockets("ping")
    if "refusal" not in result:
        assert result["method"] == "icmp-datagram"
        return
    assert "ICMP sockets are not allowed here" in result["refusal"]
    assert "there is no ping on this device" in result["refusal"]


async def test_interfaces_show_loopback_with_its_address_and_counters() -> None:
    result = await run("interfaces")
    loopback = next(one for one in result["interfaces"] if one["name"] == "lo")
    assert loopback["up"] is True
    assert loopback["index"] == socket.if_nametoindex("lo")
    assert {"family": "ipv4", "address": "127.0.0.1", "prefix": 8, "scope": "host"} in loopback["addresses"]
    assert loopback["counters"]["rxBytes"] >= 0
    assert loopback["mac"] is None


async def test_routes_agree_with_the_kernel_on_the_default_route() -> None:
    result = await run("routes")
    has_default = "00000000" in kernel_table("route", column=1)
    assert (result["default"]["ipv4"] is not None) == has_default
    names = {name for _, name in socket.if_nameindex()}
    assert all(route["interface"] in names for route in result["routes"])
    assert result["total"] == len(result["routes"])


async def test_arp_knows_every_neighbour_that_the_kernel_lists() -> None:
    listed = kernel_table("arp", column=0)
    result = await run("arp")
    told = {entry["address"] for entry in result["entries"] if entry["family"] == "ipv4"}
    # The table lives: an entry may have come or gone between the two looks.
    assert not listed or told & listed


async def test_connectivity_is_online_when_every_target_answers(open_port: int) -> None:
    result = await run("connectivity", targets=[f"127.0.0.1:{open_port}"], dnsName="localhost")
    assert result["dns"]["resolves"] is True
    assert result["targets"][0]["open"] is True
    routed = result["defaultRoute"]["ipv4"] or result["defaultRoute"]["ipv6"]
    assert result["verdict"] == ("online" if routed else "no_route")


async def test_connectivity_is_degraded_when_one_of_two_targets_answers(open_port: int, closed_port: int) -> None:
    result = await run("connectivity", targets=[f"127.0.0.1:{open_port}", f"127.0.0.1:{closed_port}"])
    assert [target["state"] for target in result["targets"]] == ["open", "closed"]
    assert result["verdict"] in ("degraded", "no_route")
    assert result["dns"]["checked"] is False


async def test_connectivity_tries_the_agents_own_targets_when_none_are_given(open_port: int) -> None:
    table = diagnostics_table(targets=[f"127.0.0.1:{open_port}"])
    outcome = await table["connectivity"](Parameters({}))
    assert [target["target"] for target in outcome.result["targets"]] == [f"127.0.0.1:{open_port}"]
