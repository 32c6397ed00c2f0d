"""The whole machine on one page: every part is made and wired here, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from . import __version__
from .api.keys import ApiOptions, Services
from .api.setup import setup_api
from .metrics import Metrics
from .realtime.bus import Bus
from .realtime.connection import ConnectionLimits
from .realtime.feeds import Feeds
from .realtime.live import LiveSockets
from .realtime.tasks import end
from .services.access import CustomerAccess, DeviceAccess
from .services.approvals import Approvals
from .services.attendance import Attendance
from .services.audit_log import AuditLog
from .services.claiming import Claiming
from .services.commands import Commands
from .services.delivery import Delivery
from .services.device_sockets import DeviceSockets
from .services.devices import Devices
from .services.dispatch import Dispatcher
from .services.enrollment import Enrollment
from .services.gauges import Gauges
from .services.heartbeats import Heartbeats
from .services.instances import Instances
from .services.portal_sockets import PortalSockets
from .services.recovery import Recovery
from .services.retention import Retention
from .services.returns import Returns
from .services.sessions import Sessions
from .services.supabase import SupabaseVerifier
from .services.sweep import Sweep
from .services.system import About, System
from .settings import Settings
from .storage.device_sessions import DeviceSessions, SessionRules
from .storage.events import EventStream
from .storage.limits import Limits
from .storage.postgres import Database, PostgresOptions
from .storage.presence import Presence
from .storage.queue import Queue
from .storage.redis_store import RedisOptions, RedisStore
from .tracing import Tracing

# Seconds for the project's public keys to come.
_FETCH_S = 5.0
_MOST_FETCHED = 256 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that live as long as the application: what runs in the background, and what must be closed."""

    database: Database
    store: RedisStore
    bus: Bus
    verifier: SupabaseVerifier
    http: _Fetcher
    commands: Commands
    claiming: Claiming
    returns: Returns
    delivery: Delivery
    devices: Devices
    system: System
    dispatcher: Dispatcher
    heartbeats: Heartbeats
    attendance: Attendance
    sweep: Sweep
    recovery: Recovery
    retention: Retention
    gauges: Gauges
    instances: Instances
    live: LiveSockets


GATEWAY = web.AppKey("GATEWAY", Gateway)


def create_app(
    settings: Settings | None = None, *, socket_limits: ConnectionLimits | None = None, tracing: Tracing | None = None
) -> web.Application:
    """Wire one instance; without `settings` those of the environment, for tools that want a plain factory.

    `socket_limits` are other bounds of sockets than those of the contract; `tracing` sends a span for each request.
    Nothing is connected before the application starts, and nothing at import. Raises `SettingsError`.
    """
    settings = settings or Settings.from_env()
    metrics = Metrics(__version__, settings.build)
    database = Database(
        PostgresOptions(
            settings.database_url,
            pool_size=settings.database_pool_size,
            statement_cache=settings.database_statement_cache,
        )
    )
    store = RedisStore.connect(
        RedisOptions(settings.redis_url),
        timed=metrics.redis_seconds.observe,
    )
    sessions = DeviceSessions(
        store, SessionRules(settings.device_session_ttl, settings.device_session_max_age, settings.rate_limit_device)
    )
    queue = Queue(store, sessions)
    presence = Presence(store, sessions, settings.heartbeat_timeout, settings.instance_id)
    limits = Limits(store, customer=settings.rate_limit_customer, auth=settings.rate_limit_auth)
    events = EventStream(store, settings.event_retention)
    dispatcher = Dispatcher(database, queue, events, sessions, metrics)
    bus = Bus(store, settings.instance_id, timed=metrics.fanout_seconds.observe)
    attendance = Attendance(database, presence, dispatcher)
    heartbeats = Heartbeats(database, presence, attendance, settings.heartbeat_interval)
    returns = Returns(database, queue, dispatcher)
    claiming = Claiming(database, queue, dispatcher, heartbeats, returns, metrics)
    delivery = Delivery(database, queue, sessions, dispatcher, bus, claiming, returns, metrics)
    http = _Fetcher()
    verifier = SupabaseVerifier(settings.supabase_jwt_secret, settings.supabase_url, http.fetch)
    live = LiveSockets(socket_limits, ended=lambda code: metrics.sockets_closed.labels(str(code or 1006)).inc())
    feeds = Feeds(bus, events)
    access = CustomerAccess(verifier, database, limits)
    devices = Devices(database, presence, dispatcher)
    commands = Commands(database, dispatcher, settings.diagnostic_types)
    approvals = Approvals(database, dispatcher, settings.approval_ttl)
    device_sockets = DeviceSockets(bus, sessions, presence, attendance, claiming, delivery)
    portal_sockets = PortalSockets(feeds, database, access, commands, approvals)

    def connections() -> Mapping[str, int]:
        return {"devices": len(device_sockets.open_sockets), "customers": len(portal_sockets.open_sockets)}

    metrics.show_connections(
        {
            "device": lambda: len(device_sockets.open_sockets),
            "customer": lambda: len(portal_sockets.open_sockets),
        }
    )
    system = System(database, store, _about(settings), connections)

    app = web.Application()
    app[GATEWAY] = Gateway(
        database=database,
        store=store,
        bus=bus,
        verifier=verifier,
        http=http,
        commands=commands,
        claiming=claiming,
        returns=returns,
        delivery=delivery,
        devices=devices,
        system=system,
        dispatcher=dispatcher,
        heartbeats=heartbeats,
        attendance=attendance,
        sweep=Sweep(database, store, dispatcher),
        recovery=Recovery(database, store, dispatcher, attendance),
        retention=Retention(database, store, sessions_s=settings.command_retention, audit_s=settings.audit_retention),
        gauges=Gauges(metrics, database, store, bus),
        instances=Instances(presence, device_sockets),
        live=live,
    )
    services = Services(
        customer_access=access,
        device_access=DeviceAccess(sessions),
        enrollment=Enrollment(database, sessions, limits, dispatcher),
        heartbeats=heartbeats,
        delivery=delivery,
        devices=devices,
        sessions=Sessions(database, dispatcher, settings.session_ttl),
        commands=commands,
        approvals=approvals,
        audit=AuditLog(database),
        system=system,
        live=live,
        device_sockets=device_sockets,
        portal_sockets=portal_sockets,
    )
    options = ApiOptions(
        version=__version__,
        cors_origins=settings.cors_origins,
        trusted_proxies=settings.trusted_proxies,
        socket_rate=settings.rate_limit_socket,
    )
    setup_api(app, services=services, options=options, metrics=metrics, tracing=tracing)
    app.on_shutdown.append(_drain_sockets)
    app.cleanup_ctx.append(_live)
    return app


async def _drain_sockets(app: web.Application) -> None:
    """For runners that do not drain by themselves: sockets end before handlers are waited for."""
    app[GATEWAY].delivery.drain()
    await app[GATEWAY].live.drain(2.0)


async def _live(app: web.Application) -> AsyncIterator[None]:
    """Run the background parts while the application runs; then write what is behind and close everything."""
    gateway = app[GATEWAY]
    await gateway.bus.start()
    loops = [
        asyncio.create_task(_guard(part.run, name), name=name)
        for name, part in (
            ("relay", gateway.dispatcher),
            ("heartbeats", gateway.heartbeats),
            ("attendance", gateway.attendance),
            ("sweep", gateway.sweep),
            ("recovery", gateway.recovery),
            ("retention", gateway.retention),
            ("gauges", gateway.gauges),
            ("instances", gateway.instances),
        )
    ]
    yield
    await end(*loops)
    await gateway.bus.stop()
    parts = (gateway.commands, gateway.claiming, gateway.delivery, gateway.devices, gateway.attendance)
    await asyncio.gather(*(part.close() for part in parts))
    with suppress(Exception):
        await asyncio.wait_for(gateway.instances.leave(), 2.0)
    # After all whose callers, or sockets, may leave a claim to nobody.
    await gateway.returns.close()
    for flush in (gateway.heartbeats.flush, gateway.dispatcher.clear_done):
        with suppress(Exception):
            await asyncio.wait_for(flush(), 2.0)
    await gateway.verifier.aclose()
    await gateway.http.close()
    await gateway.store.close()
    await gateway.database.close()


async def _guard(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Keep a background part running: a fault in it is logged and never ends it."""
    while True:
        try:
            await run()
        except Exception:
            _log.exception("background part failed", part=name)
            await asyncio.sleep(1.0)


class _Fetcher:
    """Gets the project's public keys over HTTP."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None

    async def fetch(self, url: str) -> bytes:
        """The body of a 200. Raises `OSError` for everything else."""
        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=_FETCH_S))
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise OSError(f"status {response.status}")
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MOST_FETCHED:
                        raise OSError("more than any project's keys")
                return bytes(body)
        except (ClientError, TimeoutError) as error:
            raise OSError(type(error).__name__) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _about(settings: Settings) -> About:
    limits = {
        "device": settings.rate_limit_device,
        "customer": settings.rate_limit_customer,
        "auth": settings.rate_limit_auth,
        "socket": settings.rate_limit_socket,
    }
    return About(__version__, settings.build, settings.environment, limits)
