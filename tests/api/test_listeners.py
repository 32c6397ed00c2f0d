"""Connections as a listener makes them: none holds small answers back. Whoever is connected when a listener comes to
its end is served, and whoever comes then is refused (section 7).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable

import pytest
import uvloop
from aiohttp import web

from aizen_gateway.api.server import GatewayRunner
from tests.api.bare import bare_app, exchange, served

_LOOK = b"POST /look HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other kernel can be told to begin nothing new")
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_nobody_is_connected_just_before_the_end_only_to_be_reset(
    family: socket.AddressFamily, host: str
) -> None:
    runner = GatewayRunner(bare_app())
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    address = runner.addresses[0][:2]
    with socket.create_connection(address) as early, socket.socket(family) as late:
        early.sendall(_HEALTH)
        refusing = asyncio.create_task(runner.refuse())
        await asyncio.sleep(0)
        late.setblocking(False)
        # Not connected, though there still is a listener.
        assert late.connect_ex(address) == errno.EINPROGRESS
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        await refusing
        told = asyncio.Event()
        asyncio.get_running_loop().add_writer(late, told.set)
        await told.wait()
        asyncio.get_running_loop().remove_writer(late)
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        early.setblocking(False)
        assert (await asyncio.get_running_loop().sock_recv(early, 100)).startswith(b"HTTP/1.1 200 OK")
    await runner.cleanup()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_small_answer_is_held_back_for_a_larger_one(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def option() -> int:
        """What the kernel has been told of a connection that is being answered."""
        found: list[int] = []

        async def look(request: web.Request) -> web.Response:
            assert request.transport is not None
            found.append(request.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            return web.Response()

        async with served(bare_app(look=look)) as port:
            await exchange(port, _LOOK)
        return found[0]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(option())
