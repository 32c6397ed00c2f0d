"""Whose address counts behind proxies: what a stranger writes into a header never does (contract section 7)."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict

from aizen_gateway.api.forwarded import client_address

TRUSTED = tuple(map(ip_network, ("10.0.0.0/8", "2001:db8:1::/48")))
PROXY = ("10.0.0.1", 5000)
STRANGER = ("203.0.113.9", 5000)


def address(peername: object, *forwarded: str, trusted: tuple[str, ...] | None = None) -> str:
    headers = CIMultiDict([("x-forwarded-for", value) for value in forwarded])
    return client_address(peername, headers, TRUSTED if trusted is None else tuple(map(ip_network, trusted)))


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert address(PROXY, "198.51.100.7", trusted=()) == "10.0.0.1"


def test_a_stranger_who_forwards_is_the_client() -> None:
    assert address(STRANGER, "198.51.100.7") == "203.0.113.9"


def test_a_trusted_proxy_is_believed() -> None:
    assert address(PROXY, "198.51.100.7") == "198.51.100.7"


def test_a_trusted_proxy_that_forwards_nobody_is_the_client() -> None:
    assert address(PROXY) == "10.0.0.1"
    assert address(PROXY, "") == "10.0.0.1"


def test_what_the_client_wrote_itself_is_not_believed() -> None:
    assert address(PROXY, "127.0.0.1, 198.51.100.7") == "198.51.100.7"
    assert address(PROXY, "10.9.9.9, 198.51.100.7, 10.0.0.2") == "198.51.100.7"


def test_trusted_hops_are_skipped_from_the_right() -> None:
    assert address(PROXY, "198.51.100.7, 10.0.0.3,10.0.0.2") == "198.51.100.7"


def test_several_headers_are_one_list() -> None:
    assert address(PROXY, "192.0.2.1, 198.51.100.7", "10.0.0.3") == "198.51.100.7"


def test_when_every_hop_is_trusted_the_farthest_is_the_client() -> None:
    assert address(PROXY, "10.0.0.4, 10.0.0.3") == "10.0.0.4"


@pytest.mark.parametrize(
    "garbage",
    [
        "unknown", "_hidden", "198.51.100", "198.51.100.256", "010.0.0.1", "198.51.100.7:port", "198.51.100.7:1234567",
        "[2001:db8::7", "2001:db8::7]", "[198.51.100.7]x", "fe80::1%eth0", "[fe80::1%25eth0]", "a" * 5000, "<script>",
        "198.51.100.7;x", "3232235777", "\u0661\u0669\u0668.51.100.7",
    ],
)  # fmt: skip
def test_garbage_ends_the_walk_at_the_proxy_that_wrote_it(garbage: str) -> None:
    assert address(PROXY, garbage) == "10.0.0.1"
    assert address(PROXY, f"198.51.100.7, {garbage}, 10.0.0.2") == "10.0.0.2"


def test_an_empty_entry_ends_the_walk_too() -> None:
    assert address(PROXY, "198.51.100.7, , 10.0.0.2") == "10.0.0.2"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("198.51.100.7:61234", "198.51.100.7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("[::ffff:198.51.100.7]:443", "198.51.100.7"),
        ("  198.51.100.7\t", "198.51.100.7"),
    ],
)
def test_ports_brackets_and_mapped_addresses_are_understood(written: str, meant: str) -> None:
    assert address(PROXY, written) == meant


def test_a_mapped_peer_is_its_ipv4_address() -> None:
    assert address(("::ffff:10.0.0.1", 5000, 0, 0), "198.51.100.7") == "198.51.100.7"
    assert address(("::ffff:203.0.113.9", 5000, 0, 0), "198.51.100.7") == "203.0.113.9"


def test_an_ipv6_proxy_is_believed_and_its_zone_left_out() -> None:
    assert address(("2001:db8:1::5", 5000, 0, 0), "198.51.100.7") == "198.51.100.7"
    assert address(("fe80::1%eth0", 5000, 0, 2)) == "fe80::1"


@pytest.mark.parametrize("peername", ["", b"", "/run/peer.sock"])
def test_a_peer_on_a_unix_socket_is_trusted_as_soon_as_any_proxy_is(peername: object) -> None:
    assert address(peername, "198.51.100.7") == "198.51.100.7"
    assert address(peername) == "127.0.0.1"
    assert address(peername, "198.51.100.7", trusted=()) == "127.0.0.1"


@pytest.mark.parametrize("peername", [None, (), ("nonsense", 1)])
def test_a_peer_that_cannot_be_named_is_nobody_and_not_believed(peername: object) -> None:
    assert address(peername, "198.51.100.7") == "0.0.0.0"  # noqa: S104 - the address of nobody


async def test_a_real_request_has_the_address_its_proxy_forwards() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peername = request.transport.get_extra_info("peername")
        return web.Response(text=client_address(peername, request.headers, (ip_network("127.0.0.0/8"),)))

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestServer(app) as server, ClientSession() as session:
        headers = CIMultiDict([("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "198.51.100.7, 127.0.0.9")])
        async with session.get(server.make_url("/"), headers=headers) as answer:
            assert await answer.text() == "198.51.100.7"
