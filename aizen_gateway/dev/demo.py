"""Everything on one machine, from one command: what `aizen-gateway dev` does.

The parts: `demo_environment` (what is there), `demo_processes` (what is started), `demo_customer` (who takes part),
`demo_story` (what happens), `demo_events` (what a portal sees of it), `demo_print` (how it is told), `demo_by_hand`
(how to go on). This module puts them in order and sees to it that every way out, a signal at any moment included, ends
what was started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TextIO, TypeVar

import aiohttp
import structlog

from aizen_gateway import __version__
from aizen_gateway.dev.demo_by_hand import curl_lines, write_operator_environment
from aizen_gateway.dev.demo_customer import Identities, Person
from aizen_gateway.dev.demo_environment import DataFolder, DemoEnvironment, DemoFailed
from aizen_gateway.dev.demo_events import portal_events
from aizen_gateway.dev.demo_print import ReaderGone, Teller
from aizen_gateway.dev.demo_processes import Processes
from aizen_gateway.dev.demo_stores import CUSTOMER_NAME, check_redis, prepare_database
from aizen_gateway.dev.demo_story import Story
from aizen_gateway.dev.embedded import EmbeddedServerError

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`folder` keeps the data between runs, `fresh` forgets them, `once` ends with the story."""

    folder: Path
    fresh: bool = False
    once: bool = False


def run_demo(options: DemoOptions, stream: TextIO) -> int:
    """Tell the story on `stream` and keep everything running until a signal; return the exit status.

    0 when everything succeeded, 1 when something did not (and was told), 128 and the signal's number when a signal
    came before the end of the story.
    """
    return asyncio.run(_run(options, Teller(stream)))


async def _run(options: DemoOptions, teller: Teller) -> int:
    demo = _Demo(options, teller)
    handler = _show_warnings(teller)
    signals = _Signals()
    try:
        return await demo.run(signals)
    except asyncio.CancelledError:
        if signals.first is None:
            raise
        return demo.status if demo.told else 128 + signals.first
    except (DemoFailed, EmbeddedServerError, OSError) as error:
        with suppress(ReaderGone):
            _tell_failure(teller, error, options.folder.absolute())
        return 1
    except ReaderGone:
        return 1
    finally:
        signals.close()
        logging.getLogger().removeHandler(handler)


def _tell_failure(teller: Teller, error: Exception, folder: Path) -> None:
    teller.section("It did not work")
    logs = [str(path) for pattern in ("*.log", "*/server.log") for path in sorted(folder.glob(pattern))]
    teller.trouble("\n".join([str(error), *(["All logs:", *logs] if logs else [])]))


class _Demo:
    def __init__(self, options: DemoOptions, teller: Teller) -> None:
        self._options = options
        self._teller = teller
        self.told = False
        self.status = 1

    async def run(self, signals: _Signals) -> int:
        environment = DemoEnvironment.read(os.environ)
        folder = DataFolder(self._options.folder)
        try:
            if self._options.fresh:
                folder.forget()
            environment = environment.completed(folder)
            self._teller.title(f"Aizen gateway {__version__}", f"all of it on this machine, data in {folder.path}")
            # A gateway that stops waits for a second for whoever keeps a connection to it.
            async with (
                Processes(folder, environment) as processes,
                aiohttp.ClientSession() as http,
                AsyncExitStack() as portal,
            ):
                try:
                    await self._tell(folder, environment, processes, http, portal)
                    if not self._options.once:
                        self._teller.section("Running. Ctrl-C ends everything.")
                        await processes.watch_over(signals.received.wait())
                except asyncio.CancelledError:
                    with suppress(ReaderGone):
                        self._teller.section("Stopping ...")
                    raise
                return self.status
        finally:
            folder.environment.unlink(missing_ok=True)
            folder.close()

    async def _tell(
        self,
        folder: DataFolder,
        environment: DemoEnvironment,
        processes: Processes,
        http: aiohttp.ClientSession,
        portal: AsyncExitStack,
    ) -> None:
        """Start everything and tell the story; what a portal sees is told for as long as `portal` is open."""
        self._teller.section("Starting")
        identities = Identities.of(folder)
        urls = await self._start_servers(environment, processes)
        await self._prepare(*urls, identities)
        began = monotonic()
        with self._teller.working("starting the gateway"):
            await processes.start_gateway(http, environment.of_gateway(*urls))
        self._teller.row("gateway", environment.base_url, note=f"{monotonic() - began:.1f} s")
        owner = Person.sign_in(http, environment, identities.owner_id)
        admin = Person.sign_in(http, environment, identities.admin_id)
        await portal.enter_async_context(portal_events(http, owner, self._teller))
        story = Story(self._teller, processes, identities, owner, admin)
        session_id = await processes.watch_over(self._tell_story(story, folder))
        self.told, self.status = True, 0 if story.succeeded else 1
        if not self._options.once:
            self._tell_how_to_go_on(folder, environment, identities, (owner, admin), session_id, urls)

    async def _start_servers(self, environment: DemoEnvironment, processes: Processes) -> tuple[str, str]:
        fresh = self._options.fresh
        kept = "yours; nothing in it is removed" if fresh else "yours"
        if (database_url := environment.database_url) is None:
            database_url = await self._started("PostgreSQL", processes.start_postgres(fresh=fresh))
        else:
            self._teller.row("PostgreSQL", f"{kept}, from DATABASE_URL", good=None)
        if (redis_url := environment.redis_url) is None:
            redis_url = await self._started("Valkey", processes.start_valkey(fresh=fresh))
        else:
            self._teller.row("Redis", f"{kept}, from REDIS_URL", good=None)
        return database_url, redis_url

    async def _started(self, title: str, starting: Awaitable[_T]) -> _T:
        began = monotonic()
        with self._teller.working(f"starting {title}"):
            started = await starting
        self._teller.row(title, "embedded, on 127.0.0.1", note=f"{monotonic() - began:.1f} s")
        return started

    async def _prepare(self, database_url: str, redis_url: str, identities: Identities) -> None:
        with self._teller.working("preparing the database"):
            await check_redis(redis_url)
            applied = await prepare_database(database_url, identities)
        self._teller.row("schema", f"applied {', '.join(applied)}" if applied else "up to date")
        self._teller.row("customer", f"{CUSTOMER_NAME}, with an owner and an admin: who proposes may not approve")

    async def _tell_story(self, story: Story, folder: DataFolder) -> str:
        with self._teller.working("the device arrives"):
            await story.device_arrives(knows_secret=(folder.agent / "credentials.json").exists())
        self._teller.section("A diagnosis: the owner opens a session and asks the device")
        session_id = await story.open_session()
        await story.diagnose(session_id)
        self._teller.section("A change: nothing runs that a second person has not approved")
        await story.change(session_id)
        self._teller.section("What the gateway has written down")
        await story.tell_transcript(session_id)
        return session_id

    def _tell_how_to_go_on(
        self,
        folder: DataFolder,
        environment: DemoEnvironment,
        identities: Identities,
        people: tuple[Person, Person],
        session_id: str,
        urls: tuple[str, str],
    ) -> None:
        teller = self._teller
        teller.section("Go on by hand: paste these into another terminal, the first four lines first")
        teller.verbatim(curl_lines(*people, identities, session_id))
        teller.section("What operators do")
        teller.verbatim(write_operator_environment(folder, environment, identities, *urls))
        teller.section("Read on")
        teller.row("documentation", f"{environment.base_url}/docs", good=None)
        teller.row("logs", f"{folder.path / 'gateway.log'}, {folder.path / 'agent.log'}", good=None)


class _Signals:
    """A signal cancels what this task does; another one cuts short what ends orderly."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.received = asyncio.Event()
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        # A terminal that is closed does not end what was started with nohup.
        self._handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._handled:
            self._loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        assert self._task is not None
        self.first = self.first or number
        self.received.set()
        self._task.cancel()

    def close(self) -> None:
        for number in self._handled:
            self._loop.remove_signal_handler(number)


class _Warnings(logging.Handler):
    """Shows what our own parts warn of, such as a changed file mode, and what goes wrong elsewhere, in the story."""

    def __init__(self, teller: Teller) -> None:
        super().__init__(logging.WARNING)
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("aizen_gateway.dev") and record.levelno < logging.ERROR:
            return
        with suppress(ReaderGone):
            self._teller.row("note", record.getMessage(), good=None)


def _show_warnings(teller: Teller) -> logging.Handler:
    handler = _Warnings(teller)
    logging.getLogger().addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, lambda _logger, _method, event: str(event["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    return handler
