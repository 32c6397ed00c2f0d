"""One instance on the bench: wired as ever, but nothing runs by itself. Nothing sweeps, relays or fills an emptied
index unless the test does it, and leases may be as short as a millisecond, which the HTTP layer would refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from aizen_gateway.api.keys import SERVICES, Services
from aizen_gateway.app import GATEWAY, Gateway, create_app
from aizen_gateway.domain.clock import EPOCH, to_ms
from aizen_gateway.domain.values import NOWHERE, Actor, ActorType, Principal, ResultStatus, Role, SessionType
from aizen_gateway.services.operators import Operators
from aizen_gateway.settings import Settings
from aizen_gateway.storage.device_sessions import DeviceSessions, SessionRules
from aizen_gateway.storage.queue import Queue

from .clients import JWT_SECRET


@dataclass(slots=True)
class Bench:
    """An instance's services and parts, and one customer's person."""

    services: Services
    parts: Gateway
    customer_id: UUID
    database_url: str
    redis_url: str
    user_id: str = field(default_factory=lambda: str(uuid4()))

    @classmethod
    async def open(cls, database_url: str, redis_url: str, customer_id: UUID | None = None, **variables: str) -> Bench:
        """Wire an instance; `variables` are environment variables. Without `customer_id` a new customer is made."""
        environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SUPABASE_JWT_SECRET": JWT_SECRET}
        app = create_app(Settings.from_env(environment | variables))
        parts = app[GATEWAY]
        if customer_id is None:
            made = await Operators(parts.database).create_customer("Customer", second_approver=False)
            customer_id = UUID(made["customer"]["id"])
        return cls(app[SERVICES], parts, customer_id, database_url, redis_url)

    async def close(self) -> None:
        await self.parts.returns.close()
        await self.parts.verifier.aclose()
        await self.parts.http.close()
        await self.parts.store.close()
        await self.parts.database.close()

    @property
    def index(self) -> Queue:
        """The instance's index, to be used without the truth."""
        return Queue(self.parts.store, DeviceSessions(self.parts.store, SessionRules(3600, 3600, 0)))

    async def owner(self, now_ms: int | None = None) -> Principal:
        """The customer's owner, at Redis's clock or at `now_ms`."""
        now = await self.parts.store.time_ms() if now_ms is None else now_ms
        return Principal(self.customer_id, Actor(ActorType.USER, self.user_id), Role.OWNER, float("inf"), now)

    async def device(self, device_id: str) -> BenchDevice:
        """A new device: provisioned, registered and signed in."""
        provisioned = await self.services.devices.provision(
            await self.owner(), device_id=device_id, name=None, location=None, origin=NOWHERE
        )
        registered = await self.services.enrollment.register(
            device_id=device_id,
            activation_code=provisioned["device"]["activationCode"],
            device_name=None,
            metadata=None,
            origin=NOWHERE,
        )
        signed_in = await self.services.enrollment.authenticate(
            device_id=device_id, device_secret=registered["deviceSecret"], origin=NOWHERE
        )
        return BenchDevice(self, device_id, registered["deviceSecret"], signed_in["token"])

    async def open_session(self, device_id: str) -> UUID:
        """An active session; its id."""
        answer = await self.services.sessions.open(
            await self.owner(),
            device_id=device_id,
            type=SessionType.DIAGNOSTIC,
            description=None,
            idempotency=None,
            origin=NOWHERE,
        )
        return UUID(answer.body["session"]["id"])

    async def submit(self, session_id: UUID, type: str = "ping", now_ms: int | None = None, **options: Any) -> Any:
        """A new command."""
        fields: dict[str, Any] = {
            "parameters": {},
            "priority": 5,
            "timeout_ms": 300_000,
            "expires_in_ms": None,
            "max_deliveries": None,
            "reason": None,
        }
        principal = await self.owner(now_ms)
        answer = await self.services.commands.submit(
            principal, session_id, type=type, **fields | options, idempotency=None, origin=NOWHERE
        )
        return answer.body["command"]

    async def approve(self, command: Any) -> Any:
        """Approve a command and return it."""
        await self.services.approvals.decide(
            await self.owner(),
            UUID(command["sessionId"]),
            approved=True,
            reason=None,
            command_id=UUID(command["id"]),
            digest=command["digest"],
            origin=NOWHERE,
        )
        return await self.command(command)

    async def cancel(self, command: Any, *, force: bool = False) -> Any:
        """Cancel a command and return it."""
        session_id, command_id = UUID(command["sessionId"]), UUID(command["id"])
        answer = await self.services.commands.cancel(
            await self.owner(), session_id, command_id, reason=None, force=force, origin=NOWHERE
        )
        return answer["command"]

    async def passes(self, moment: str, more_ms: int = 0) -> None:
        """Return once Redis's clock is `more_ms` past `moment`, a time as the contract writes it."""
        left = to_ms(datetime.fromisoformat(moment)) + more_ms - await self.parts.store.time_ms()
        # A millisecond more, since Redis's is cut.
        await asyncio.sleep(max(0, left + 1) / 1000)

    async def command(self, command: Any) -> Any:
        """A command as its customer now sees it."""
        answer = await self.services.sessions.get(await self.owner(), UUID(command["sessionId"]))
        return next(found for found in answer["session"]["commands"] if found["id"] == command["id"])


@dataclass(slots=True)
class BenchDevice:
    """A device at an instance on the bench. `bench` may be replaced by another instance."""

    bench: Bench
    device_id: str
    secret: str
    token: str

    async def sign_in(self) -> None:
        """Exchange the secret for a new token."""
        answer = await self.bench.services.enrollment.authenticate(
            device_id=self.device_id, device_secret=self.secret, origin=NOWHERE
        )
        self.token = answer["token"]

    async def claim(
        self, *, limit: int = 1, visibility_ms: int = 300_000, connected: Callable[[], bool] = lambda: True
    ) -> Sequence[Any]:
        answer = await self.bench.services.delivery.claim(
            self.token,
            limit=limit,
            visibility_timeout=visibility_ms,
            wait_ms=0,
            connected=connected,
            origin=NOWHERE,
        )
        return list(answer["commands"])

    async def report(self, claimed: Any, status: ResultStatus = ResultStatus.SUCCESS, output: str | None = None) -> Any:
        caller = await self.bench.services.device_access.enter(self.token)
        return await self.bench.services.delivery.report(
            caller,
            UUID(claimed["id"]),
            claim_token=claimed["claimToken"],
            status=status,
            output=output,
            error=None,
            result=None,
            executed_at=EPOCH,
            duration=1,
            origin=NOWHERE,
        )

    async def extend(self, claimed: Any, extension_ms: int) -> Any:
        caller = await self.bench.services.device_access.enter(self.token)
        return await self.bench.services.delivery.extend(
            caller,
            UUID(claimed["id"]),
            claim_token=claimed["claimToken"],
            extension_ms=extension_ms,
            origin=NOWHERE,
        )

    async def release(self, claimed: Any) -> Any:
        caller = await self.bench.services.device_access.enter(self.token)
        return await self.bench.services.delivery.release(
            caller, UUID(claimed["id"]), claim_token=claimed["claimToken"], origin=NOWHERE
        )


@pytest.fixture
async def bench(database_url: str, redis_url: str) -> AsyncIterator[Bench]:
    """One instance on the bench, with a customer of its own."""
    opened = await Bench.open(database_url, redis_url, AIZEN_RATE_LIMIT_DEVICE="0")
    yield opened
    await opened.close()
