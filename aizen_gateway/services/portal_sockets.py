"""A portal's socket: rooms, resume, and the same commands and approvals as over REST (contract section 6)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ..domain.clock import from_ms, rfc3339
from ..domain.errors import DeviceNotFound, Forbidden, InvalidRequest, NoCustomer, SessionNotFound, Unavailable
from ..domain.values import DEVICE_ID, IdempotencyKey, Origin, Principal
from ..realtime.close_codes import CloseCode
from ..realtime.connection import Connection
from ..realtime.feed import Feed
from ..realtime.feeds import Feeds
from ..realtime.frames import frame
from ..realtime.later import Cancellable, Later
from ..realtime.subscribers import Subscriber
from ..realtime.tasks import end
from ..storage import queries
from ..storage.events import EVERYTHING
from ..storage.postgres import Database
from .access import CustomerAccess, still_member
from .approvals import Approvals
from .commands import Commands

_DEVICES = queries.load("devices")
_SESSIONS = queries.load("sessions")
# A socket in more rooms than a portal has panes is a fault of its client.
MOST_ROOMS = 200


@dataclass(frozen=True, slots=True)
class PortalTimes:
    """Seconds: for the first message to bring the token, before a token's end at which its socket is told, and between
    two looks at whether a silent portal is still a member."""

    first_message: float = 10.0
    expiring: float = 60.0
    look: float = 30.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a portal showed: its token, and the customer that a service names."""

    token: str
    customer: str | None


class PortalSockets:
    """The portal sockets of this instance."""

    def __init__(
        self, feeds: Feeds, database: Database, access: CustomerAccess, commands: Commands, approvals: Approvals
    ) -> None:
        self.feeds = feeds
        self.database = database
        self.access = access
        self.commands = commands
        self.approvals = approvals
        self.times = PortalTimes()
        self.timers = Later()
        self.open_sockets: set[PortalSocket] = set()

    async def enter(self, credentials: Credentials) -> Principal:
        """Who the portal is. Raises as `CustomerAccess.enter`."""
        return await self.access.enter(credentials.token, credentials.customer)

    async def open(self, connection: Connection, credentials: Credentials, principal: Principal) -> PortalSocket:
        """The socket follows its customer's events from now on, until it `leave`s. Raises `Unavailable`."""
        socket = PortalSocket(self, connection, credentials, principal)
        self.open_sockets.add(socket)
        try:
            socket.begin(await self.feeds.follow(principal.customer_id, socket.subscriber))
        except BaseException:
            await self.leave(socket)
            raise
        return socket

    async def leave(self, socket: PortalSocket) -> None:
        """The socket has ended, or could not be opened."""
        self.open_sockets.discard(socket)
        await socket.stop()
        await self.feeds.leave(socket.principal.customer_id, socket.subscriber)


class PortalSocket:
    """One portal's socket. Every message enters anew, so a membership that ended ends here too."""

    __slots__ = (
        "_credentials",
        "_feed",
        "_home",
        "_look_timer",
        "_looking",
        "_token_timer",
        "connection",
        "principal",
        "subscriber",
    )

    def __init__(
        self, home: PortalSockets, connection: Connection, credentials: Credentials, principal: Principal
    ) -> None:
        self.connection = connection
        self.principal = principal
        self.subscriber = Subscriber(connection)
        self._home = home
        self._credentials = credentials
        self._feed: Feed | None = None
        self._token_timer: Cancellable | None = None
        self._look_timer: Cancellable | None = None
        self._looking: asyncio.Task[None] | None = None

    def begin(self, feed: Feed) -> None:
        """Say hello, and watch the token's end."""
        self._feed = feed
        principal = self.principal
        hello = {
            "customerId": str(principal.customer_id),
            "connectionId": str(self.connection.id),
            "serverTime": rfc3339(from_ms(principal.now_ms)),
        }
        self.connection.send(frame("connected", hello))
        self._watch_token()
        self._look_later()

    async def stop(self) -> None:
        """End what the timers began, and forget them."""
        try:
            if self._looking is not None:
                await end(self._looking)
        finally:
            # Last: a look that its cancellation did not reach has set the timer for the next one.
            for timer in (self._token_timer, self._look_timer):
                if timer is not None:
                    timer.cancel()

    def _watch_token(self) -> None:
        if self._token_timer is not None:
            self._token_timer.cancel()
        left = self.principal.expires_at - self.principal.now_ms / 1000
        expiring = min(max(0.0, left), self._home.times.expiring)
        self._token_timer = self._home.timers.call_later(max(0.0, left) - expiring, self._tell_expiring, expiring)

    def _tell_expiring(self, left: float) -> None:
        expires = from_ms(int(self.principal.expires_at * 1000))
        self.connection.send(frame("auth_expiring", {"expiresAt": rfc3339(expires)}))
        self._token_timer = self._home.timers.call_later(
            left, self.connection.end, CloseCode.UNAUTHENTICATED, "token expired"
        )

    async def enter(self) -> Principal:
        """The portal's principal at this moment; counts the message.

        Raises as `CustomerAccess.enter`, and `NoCustomer` when the user is another customer's by now.
        """
        principal = await self._home.enter(self._credentials)
        if principal.customer_id != self.principal.customer_id:
            raise NoCustomer
        return principal

    def _look_later(self) -> None:
        """Look now and then whether the portal is still a member, though it asks for nothing."""
        self._looking = None
        delay = self._home.times.look * random.uniform(0.8, 1.0)
        self._look_timer = self._home.timers.call_later(delay, self._look)

    def _look(self) -> None:
        self._looking = asyncio.create_task(self._look_at_membership(), name="portal-membership")

    async def _look_at_membership(self) -> None:
        """Close the socket of a portal whose membership ended."""
        try:
            async with self._home.database.connection() as connection:
                await still_member(connection, self.principal)
        except Unavailable:
            pass
        except NoCustomer:
            self.connection.end(CloseCode.FORBIDDEN, "no access")
            return
        self._look_later()

    async def renew(self, token: str) -> dict[str, Any]:
        """Go on with another token of the same user and customer.

        Raises `Forbidden` for another one, `Unauthenticated`, `RateLimited`, `Unavailable`; then the socket stays as it
        was.
        """
        credentials = Credentials(token, self._credentials.customer)
        try:
            principal = await self._home.enter(credentials)
        except (NoCustomer, InvalidRequest):
            principal = None
        known = self.principal
        if principal is None or (principal.customer_id, principal.actor) != (known.customer_id, known.actor):
            raise Forbidden("The token is of another user or customer.")
        self._credentials, self.principal = credentials, principal
        self._watch_token()
        return auth_success(principal)

    async def subscribe(
        self, room: str | None, device_id: str | None, last_event_id: str | None, request_id: str | None
    ) -> None:
        """Join a room; answered `subscribed`, then what was missed, then live.

        Raises `InvalidRequest`, `DeviceNotFound`, `SessionNotFound`, `Unavailable`.
        """
        principal = await self.enter()
        name = await self._room(principal, room, device_id)
        assert self._feed is not None
        if name not in self.subscriber.rooms and len(self.subscriber.rooms) >= MOST_ROOMS:
            raise InvalidRequest.field("room", f"A socket may be in {MOST_ROOMS} rooms.")
        past = await self._feed.join(self.subscriber, name, last_event_id)
        answer = {
            "room": name,
            "lastEventId": past.last_event_id,
            "replayed": past.replayed,
            "complete": past.complete,
        }
        self.connection.send(frame("subscribed", answer, request_id))
        await self._feed.finish(self.subscriber)

    async def unsubscribe(self, room: str | None, device_id: str | None) -> dict[str, Any]:
        """Leave a room; one that was not joined is left as well. Raises `InvalidRequest`."""
        name = _room_name(room, device_id)
        self.subscriber.rooms.pop(name, None)
        return {"room": name}

    async def join_rooms(self) -> dict[str, Any]:
        """Join the room that hears everything, without a past. Raises `Unavailable`."""
        await self.enter()
        assert self._feed is not None
        await self._feed.join(self.subscriber, EVERYTHING, None)
        return {"rooms": sorted(self.subscriber.rooms)}

    async def send_command(
        self, session_id: UUID, body: dict[str, Any], idempotency: IdempotencyKey | None, origin: Origin
    ) -> dict[str, Any]:
        """As `POST /sessions/{id}/commands`."""
        principal = await self.enter()
        answer = await self._home.commands.submit(principal, session_id, **body, idempotency=idempotency, origin=origin)
        return answer.body

    async def approve(self, session_id: UUID, body: dict[str, Any], origin: Origin) -> dict[str, Any]:
        """As `POST /sessions/{id}/approve`."""
        return await self._home.approvals.decide(await self.enter(), session_id, **body, origin=origin)

    async def _room(self, principal: Principal, room: str | None, device_id: str | None) -> str:
        """The name of a room that is there for this customer."""
        name = _room_name(room, device_id)
        kind, _, thing = name.partition(":")
        database = self._home.database
        if kind == "device":
            if not DEVICE_ID.match(thing):
                raise DeviceNotFound
            if await database.fetchrow(_DEVICES["read_device"], thing, principal.customer_id) is None:
                raise DeviceNotFound
        elif kind == "session":
            session_id = _uuid(thing)
            if session_id is None:
                raise SessionNotFound
            if await database.fetchrow(_SESSIONS["read_session"], session_id, principal.customer_id) is None:
                raise SessionNotFound
        return name


def auth_success(principal: Principal) -> dict[str, Any]:
    """The payload that answers `auth`."""
    return {
        "customerId": str(principal.customer_id),
        "userId": principal.actor.id,
        "role": principal.role.value,
        "expiresAt": rfc3339(from_ms(int(principal.expires_at * 1000))),
    }


def _room_name(room: str | None, device_id: str | None) -> str:
    if (room is None) == (device_id is None):
        raise InvalidRequest.field("room", "Give a room or a deviceId.")
    name = room if room is not None else f"device:{device_id}"
    if name != EVERYTHING and not name.startswith(("device:", "session:")):
        raise InvalidRequest.field("room", "Must be customer, device:<id> or session:<id>.")
    # UUIDs may be written in capitals; rooms have one name.
    return name.lower() if name.startswith("session:") else name


def _uuid(text: str) -> UUID | None:
    """The UUID that is written as rooms' names have it, else None."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None
