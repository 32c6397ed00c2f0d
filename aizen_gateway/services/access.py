"""Who is calling: customers by Supabase tokens and memberships, devices by session tokens (contract section 2)."""

from __future__ import annotations

from uuid import UUID

from ..domain.errors import InvalidRequest, NoCustomer, Unauthenticated
from ..domain.values import Actor, ActorType, DeviceCaller, Principal, Role
from ..storage import queries
from ..storage.device_sessions import DeviceSessions
from ..storage.limits import Limits
from ..storage.postgres import Connection, Database
from .supabase import SupabaseVerifier, VerifiedToken

_SQL = queries.load("customers")
# Customers are made by operators and never deleted, so one that was seen is there.
_MOST_KNOWN = 10_000
_MOST_SUBJECT = 200


class CustomerAccess:
    """Turns a Supabase token into a `Principal`."""

    def __init__(self, verifier: SupabaseVerifier, database: Database, limits: Limits) -> None:
        self._verifier = verifier
        self._database = database
        self._limits = limits
        self._known: set[UUID] = set()

    async def enter(self, token: str | None, customer_header: str | None) -> Principal:
        """Admit a customer user or a service, and count the call.

        Raises `Unauthenticated`, `InvalidRequest` (a service without a good `X-Customer-ID`), `NoCustomer`,
        `RateLimited`, `Unavailable`.
        """
        if not token:
            raise Unauthenticated
        verified = await self._verifier.verify(token)
        if verified.is_service:
            return await self._service(verified, customer_header)
        return await self._user(verified)

    async def _service(self, token: VerifiedToken, header: str | None) -> Principal:
        try:
            customer_id = UUID(header or "")
        except ValueError as error:
            raise InvalidRequest.field("X-Customer-ID", "A service must name a customer by its UUID.") from error
        await self._require_customer(customer_id)
        actor = Actor(ActorType.SERVICE, _service_name(token.subject))
        return await self._admit(token, customer_id, actor, Role.ADMIN)

    async def _user(self, token: VerifiedToken) -> Principal:
        assert token.subject is not None
        actor = Actor(ActorType.USER, token.subject)
        if token.names_customer:
            if token.customer_id is None:
                raise NoCustomer
            role = _role(token.customer_role or "")
            await self._require_customer(token.customer_id)
            return await self._admit(token, token.customer_id, actor, role)
        row = await self._database.fetchrow(_SQL["membership"], UUID(token.subject))
        if row is None:
            raise NoCustomer
        return await self._admit(token, row["customer_id"], actor, _role(row["role"]), from_membership=True)

    async def _admit(
        self, token: VerifiedToken, customer_id: UUID, actor: Actor, role: Role, *, from_membership: bool = False
    ) -> Principal:
        now_ms = await self._limits.admit_user(customer_id, actor.id)
        return Principal(customer_id, actor, role, token.expires_at, now_ms, from_membership)

    async def _require_customer(self, customer_id: UUID) -> None:
        if customer_id in self._known:
            return
        if await self._database.fetchrow(_SQL["read_customer"], customer_id) is None:
            raise NoCustomer
        if len(self._known) < _MOST_KNOWN:
            self._known.add(customer_id)


async def still_member(connection: Connection, principal: Principal) -> Role:
    """The role the approver has at this moment. Raises `NoCustomer` when it has none any more.

    A role that the token itself carries is what the token says for as long as it lives.
    """
    if not principal.from_membership:
        return principal.role
    row = await connection.fetchrow(_SQL["membership"], UUID(principal.actor.id))
    if row is None or row["customer_id"] != principal.customer_id:
        raise NoCustomer
    return _role(row["role"])


def _service_name(subject: str | None) -> str:
    """A service's subject may be any text: as much of it as a record needs, and without what none can hold."""
    return (subject or "")[:_MOST_SUBJECT].replace("\x00", "\ufffd") or "service"


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError as error:
        raise NoCustomer("This account has no role that the gateway knows.") from error


class DeviceAccess:
    """Turns a device session token into a `DeviceCaller`."""

    def __init__(self, sessions: DeviceSessions) -> None:
        self._sessions = sessions

    async def enter(self, token: str | None, *, counted: bool = True) -> DeviceCaller:
        """Check and slide the session. Unless `counted`, the call does not count against the device's limit.

        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        return await self._sessions.enter(token, counted=counted)
