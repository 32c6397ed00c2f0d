"""Runs one instance until a signal: listen, announce, drain, close, all within bounds (contract section 7)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import click
import structlog
import uvloop
from aiohttp import web

from .. import __version__
from ..api.metrics import METRICS, metrics_application
from ..api.server import GatewayRunner
from ..app import GATEWAY, Gateway, create_app
from ..logs import configure_logging, flush_requests
from ..settings import Settings, SettingsError
from ..tracing import Tracing, TracingError
from .systemd import notify, passed_sockets, shown, watched

_BACKLOG = 1024
# What is kept of the drain's time for closing Redis and the database, unless that is more than half of it.
_CLOSING_S = 3.0
# When the gateway closes, whoever is still there has had the time to take an answer.
_LEFTOVERS_S = 0.2
_CANNOT_LISTEN = 1
# Garbage in cycles is looked for when so many objects more are alive than before, and everything is looked at after a
# hundred times that. What lives is nearly all of sockets, and is freed without the collector when they end: with the
# interpreter's own numbers it took a third of the time, and each look at 10,000 sockets stopped everybody else.
_COLLECT_AFTER = (20_000, 10, 10)
# What a shell says of a process that a signal ended: this and the signal's number.
_BY_SIGNAL = 128

_log = structlog.get_logger(__name__)


class CannotListen(Exception):
    """An address cannot be listened on; the text says which and why."""


@click.command()
def serve() -> None:
    """Run one instance until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_env()
        tracing = Tracing.from_env(
            os.environ, version=__version__, instance_id=settings.instance_id, environment=settings.environment
        )
    except (SettingsError, TracingError) as error:
        for line in str(error).splitlines():
            click.echo(f"aizen-gateway: {line}", err=True)
        sys.exit(2)
    configure_logging(settings.log_level, settings.log_format)
    # 0 after a stop, 1 when an address cannot be had. A second signal ends the process itself, at once.
    leave(uvloop.run(_serve(settings, tracing)))


async def _serve(settings: Settings, tracing: Tracing | None) -> int:
    signals = _Signals()
    app = create_app(settings, tracing=tracing)
    runner = GatewayRunner(app, handle_signals=False, shutdown_timeout=_LEFTOVERS_S)
    await runner.setup()
    try:
        async with _metrics(app, settings) as metrics, watched():
            sites = await _listen(runner, settings)
            _collect_seldom()
            notify("READY=1")
            addresses = [site.name for site in sites]
            _log.info("listening", addresses=addresses, instance=settings.instance_id, **metrics)
            async with shown(lambda: _status(app[GATEWAY], runner)):
                await signals.first.wait()
                await _stop(runner, app, settings)
    except CannotListen as error:
        _log.error("cannot listen", reason=str(error))
        await runner.cleanup()
        return _CANNOT_LISTEN
    return 0


def _collect_seldom() -> None:
    """What there is by now stays for good, and is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _status(gateway: Gateway, runner: GatewayRunner) -> str:
    """What `systemctl status` shows."""
    state = "draining" if gateway.system.draining else "serving"
    return f"{state}, open sockets: {gateway.live.count}, requests under way: {runner.under_way}"


async def _stop(runner: GatewayRunner, app: web.Application, settings: Settings) -> None:
    """Drain and close within the time for it; what hangs after that does not hold the process."""
    notify("STOPPING=1")
    notify("STATUS=draining")
    total = float(settings.drain_timeout)
    _log.info("draining", timeout=settings.drain_timeout)
    # Not a time-out that cancels: what hangs may not let itself be cancelled either.
    asyncio.get_running_loop().call_later(total, _give_up)
    try:
        async with asyncio.timeout(total - min(_CLOSING_S, total / 2)):
            await _drain(runner, app, settings.drain_delay, total)
    except TimeoutError:
        await runner.refuse()
        _log.warning("unanswered requests are broken off", connections=runner.abort())
    await runner.cleanup()
    _log.info("stopped")


def _give_up() -> None:
    _log.warning("stopped by force")
    leave(0)


async def _drain(runner: GatewayRunner, app: web.Application, delay: float, within: float) -> None:
    """Let what is under way come to its end; new connections are refused after `delay` seconds."""
    app[GATEWAY].system.start_draining()
    await asyncio.sleep(delay)
    await runner.refuse()
    app[GATEWAY].delivery.drain()
    # At once, since from now on every answer tells its client to come back on another connection.
    await asyncio.gather(app[GATEWAY].live.drain(within / 2), runner.drain())


async def _listen(runner: web.AppRunner, settings: Settings) -> list[web.BaseSite]:
    """A socket from the service manager, else a unix socket, else host and port. Raises `CannotListen`."""
    try:
        sites: list[web.BaseSite] = [web.SockSite(runner, passed, backlog=_BACKLOG) for passed in passed_sockets()]
        if not sites and settings.unix_socket is not None:
            _require_unused(settings.unix_socket)
            sites = [web.UnixSite(runner, settings.unix_socket, backlog=_BACKLOG)]
        if not sites:
            sites = [web.TCPSite(runner, settings.host, settings.port, backlog=_BACKLOG)]
        for site in sites:
            await site.start()
    except OSError as error:
        raise CannotListen(str(error)) from error
    return sites


def _require_unused(path: str) -> None:
    """A socket that somebody listens on would be replaced without a word. Raises `OSError`."""
    if not Path(path).exists() or not stat.S_ISSOCK(Path(path).stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(1.0)
        probe.connect(path)
        raise OSError(f"another process listens on {path}")


@contextlib.asynccontextmanager
async def _metrics(app: web.Application, settings: Settings) -> AsyncIterator[dict[str, str]]:
    """Serve `/metrics` on an address of its own, for as long as the gateway runs, and tell it for the log."""
    if settings.metrics_bind is None:
        yield {}
        return
    side = metrics_application(app[METRICS])
    runner = web.AppRunner(side, handle_signals=False, access_log=None, shutdown_timeout=_LEFTOVERS_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, *settings.metrics_bind)
        try:
            await site.start()
        except OSError as error:
            raise CannotListen(f"metrics: {error}") from error
        yield {"metrics": site.name}
    finally:
        await runner.cleanup()


class _Signals:
    """The first SIGTERM or SIGINT drains, the second ends the process."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        if self.first.is_set():
            _log.warning("stopped by a second signal", signal=number.name)
            leave(_BY_SIGNAL + number)
        self.first.set()


def leave(status: int) -> NoReturn:
    """End the process without waiting for anything: what was answered is durable already.

    After an orderly stop too: to take an interpreter apart in which a gateway ran takes longer than the stop itself.
    """
    flush_requests()
    sys.stderr.flush()
    os._exit(status)
