"""What a command's parameters may say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aizen_gateway.dev.diagnostics import BadParameter, Parameters, diagnostics_table
from aizen_gateway.dev.diagnostics.parameters import checked_host, split_target
from aizen_gateway.domain.values import DEFAULT_DIAGNOSTIC_TYPES


def test_every_diagnostic_type_of_the_contract_can_be_run() -> None:
    assert set(diagnostics_table()) == DEFAULT_DIAGNOSTIC_TYPES


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ping", {"host": "-f"}),
        ("ping", {"host": "--flood"}),
        ("traceroute", {"host": "-n"}),
        ("dns", {"name": "-x"}),
        ("dns", {"name": "a.test", "server": "-p"}),
        ("port_check", {"host": "-", "port": 80}),
        ("connectivity", {"targets": ["-h:80"]}),
        ("connectivity", {"dnsName": "-h"}),
        ("http_check", {"url": "http://-x/"}),
        ("bandwidth", {"url": "-o/etc/passwd"}),
        ("logs", {"unit": "-f"}),
    ],
)
async def test_no_target_may_start_with_a_hyphen(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        await diagnostics_table()[name](Parameters(parameters))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ping", {}),
        ("ping", {"host": 7}),
        ("ping", {"host": "a b"}),
        ("ping", {"host": "a\nb"}),
        ("ping", {"host": "localhost", "count": 0}),
        ("ping", {"host": "localhost", "count": 1000}),
        ("ping", {"host": "localhost", "count": True}),
        ("ping", {"host": "localhost", "count": "3"}),
        ("ping", {"host": "localhost", "family": "5"}),
        ("traceroute", {"host": "localhost", "maxHops": 65}),
        ("dns", {}),
        ("dns", {"name": "a.test", "type": "AXFR"}),
        ("dns", {"name": "a.test", "server": "ns.test"}),
        ("port_check", {"host": "localhost"}),
        ("port_check", {"host": "localhost", "port": 1, "ports": [2]}),
        ("port_check", {"host": "localhost", "ports": []}),
        ("port_check", {"host": "localhost", "ports": [0]}),
        ("port_check", {"host": "localhost", "ports": list(range(1, 102))}),
        ("http_check", {"url": "file:///etc/passwd"}),
        ("http_check", {"url": "http://user:pass@localhost/"}),
        ("http_check", {"url": "http://localhost:99999/"}),
        ("http_check", {"url": "http://[::1/"}),
        ("bandwidth", {}),
        ("connectivity", {"targets": "a:1"}),
        ("connectivity", {"targets": ["a"]}),
        ("connectivity", {"targets": [1]}),
        ("logs", {"lines": 5000}),
        ("logs", {"unit": "a.service", "path": "/var/log/syslog"}),
    ],
)
async def test_a_wrong_parameter_is_refused_before_anything_is_done(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        await diagnostics_table()[name](Parameters(parameters))


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "::1", "fe80::1%eth0", "a_b.example.com.", "bücher.example"]
)
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert checked_host("host", host).isascii()


@given(st.text(max_size=300))
def test_whatever_passes_as_a_host_is_harmless_on_a_command_line(text: str) -> None:
    try:
        host = checked_host("host", text)
    except BadParameter:
        return
    assert host.isascii()
    assert host.isprintable()
    assert not host.startswith("-")
    assert not set(host) & set(" \t\n;|&$`'\"<>(){}*?!\\/")


def test_a_target_is_split_into_host_and_port() -> None:
    assert split_target("[::1]:443") == ("::1", 443)
    assert split_target("example.com:80") == ("example.com", 80)
    for wrong in ("example.com", "example.com:", ":80", "example.com:0", "example.com:65536", "example.com:٤٤"):
        with pytest.raises(BadParameter):
            split_target(wrong)


def test_parameters_that_nobody_read_are_named() -> None:
    parameters = Parameters({"host": "localhost", "cuont": 3})
    parameters.host()
    assert parameters.unread() == ["cuont"]
