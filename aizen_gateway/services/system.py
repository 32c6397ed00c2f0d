"""Whether the gateway can serve, and what it is (contract sections 4 and 5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..domain.errors import GatewayError
from ..domain.values import MAX_OPEN_COMMANDS, Principal
from ..storage.postgres import Database
from ..storage.redis_store import RedisStore

# Each check of readiness has this many seconds at the most (contract section 5).
_CHECK_S = 2.0


@dataclass(frozen=True, slots=True)
class About:
    """What an instance says of itself; `limits` are calls a minute."""

    version: str
    build: str
    environment: str
    limits: Mapping[str, int]


class System:
    """Readiness and information. `start_draining` turns readiness off for good."""

    def __init__(
        self, database: Database, store: RedisStore, about: About, connections: Callable[[], Mapping[str, int]]
    ) -> None:
        self._database = database
        self._store = store
        self._about = about
        self._connections = connections
        self._started = time.monotonic()
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether this instance is on its way out."""
        return self._draining

    def start_draining(self) -> None:
        self._draining = True

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether traffic should come, and the body that says why not. Never raises."""
        checks, errors = await self._checks()
        if self._draining:
            errors["gateway"] = "draining"
        ready = all(checks.values()) and not self._draining
        body: dict[str, Any] = {"ready": ready, "checks": checks}
        if errors:
            body["errors"] = errors
        return ready, body

    async def _checks(self) -> tuple[dict[str, bool], dict[str, str]]:
        names = ("database", "redis")
        found = await asyncio.gather(_check(self._ask_database()), _check(self._ask_redis()))
        checks = {name: problem is None for name, problem in zip(names, found, strict=True)}
        errors = {name: problem for name, problem in zip(names, found, strict=True) if problem is not None}
        return checks, errors

    async def _ask_database(self) -> None:
        # The schema must be there too: a gateway before its migration can serve nothing.
        await self._database.fetchrow("select 1 from aizen.customers limit 1")

    async def _ask_redis(self) -> None:
        # A write, for a replica or a full server answers a ping and can serve nothing.
        await self._store.call("SET", "aizen:{index}:ready", "1", "PX", 10_000)

    async def info(self, principal: Principal) -> dict[str, Any]:
        """What runs here; `uptime` is seconds. Any role may read it."""
        checks, _ = await self._checks()
        about = self._about
        return {
            "version": about.version,
            "build": about.build,
            "environment": about.environment,
            "uptime": round(time.monotonic() - self._started, 3),
            "services": {name: "up" if up else "down" for name, up in checks.items()},
            "connections": dict(self._connections()),
            "features": {
                "longPolling": True,
                "webSockets": True,
                "approvals": True,
                "idempotency": True,
            },
            "limits": {**about.limits, "openCommandsPerDevice": MAX_OPEN_COMMANDS},
        }


async def _check(question: Awaitable[None]) -> str | None:
    try:
        await asyncio.wait_for(question, _CHECK_S)
    except TimeoutError:
        return "no answer in time"
    except GatewayError as error:
        return error.message
    except Exception as error:  # readiness is an answer about failures, so none may escape from it
        return type(error).__name__
    return None
