"""The words of the contract as types: statuses, roles, actors and the limits that every layer shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,63}\Z", re.ASCII)
COMMAND_TYPE = re.compile(r"[a-z][a-z0-9_.-]{0,63}\Z", re.ASCII)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z", re.ASCII)

DEFAULT_DIAGNOSTIC_TYPES = frozenset(
    {
        "ping",
        "traceroute",
        "dns",
        "port_check",
        "http_check",
        "interfaces",
        "routes",
        "arp",
        "connectivity",
        "bandwidth",
        "system_info",
        "logs",
    }
)

MAX_OPEN_COMMANDS = 100
MAX_PARAMETERS_BYTES = 16 * 1024
MAX_OUTPUT_CHARACTERS = 128 * 1024
MAX_ERROR_CHARACTERS = 8 * 1024
DEFAULT_DELIVERIES_DIAGNOSTIC = 5
DEFAULT_DELIVERIES_REMEDIATION = 1
ACTIVATION_TTL_S = 24 * 3600
ACTIVATION_TRIES = 5
ACTIVATION_GRACE_S = 600
IDEMPOTENCY_TTL_S = 24 * 3600
# Seconds that events may be told to be kept: what portals rely on (section 6), and what Redis has room for.
SHORTEST_EVENTS_S = 600
LONGEST_EVENTS_S = 24 * 3600


class DeviceStatus(StrEnum):
    """What a customer sees of a device (contract section 4)."""

    PROVISIONED = "provisioned"
    ONLINE = "online"
    OFFLINE = "offline"
    ERROR = "error"
    SUSPENDED = "suspended"


class Connection(StrEnum):
    """How a device was last in touch."""

    WEBSOCKET = "websocket"
    POLLING = "polling"
    NONE = "none"


class HeartbeatStatus(StrEnum):
    """What a device says of itself (contract section 3)."""

    ONLINE = "online"
    BUSY = "busy"
    ERROR = "error"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    OFFLINE = "offline"


class SessionType(StrEnum):
    DIAGNOSTIC = "diagnostic"
    REMEDIATION = "remediation"


class CommandKind(StrEnum):
    DIAGNOSTIC = "diagnostic"
    REMEDIATION = "remediation"


class SessionStatus(StrEnum):
    PENDING_APPROVAL = "pending_approval"
    ACTIVE = "active"
    REJECTED = "rejected"
    COMPLETED = "completed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def is_open(self) -> bool:
        return self in (SessionStatus.PENDING_APPROVAL, SessionStatus.ACTIVE)


class CommandStatus(StrEnum):
    PENDING_APPROVAL = "pending_approval"
    QUEUED = "queued"
    REJECTED = "rejected"
    CLAIMED = "claimed"
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    EXPIRED = "expired"
    UNDELIVERABLE = "undeliverable"


class ResultStatus(StrEnum):
    """What a device says of a command it ran."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"
    CANCELED = "canceled"


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    VIEWER = "viewer"


class ActorType(StrEnum):
    USER = "user"
    SERVICE = "service"
    DEVICE = "device"
    OPERATOR = "operator"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something. `id` is a user's UUID, a service's `sub`, a device id, or the type's own name."""

    type: ActorType
    id: str


GATEWAY = Actor(ActorType.GATEWAY, "gateway")
OPERATOR = Actor(ActorType.OPERATOR, "operator")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call came from, for the audit record and the messages that the call causes."""

    request_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None


NOWHERE = Origin()


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer; `replayed` when an Idempotency-Key brought back the first one."""

    status: int
    body: dict[str, Any]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key, the endpoint it was used on (`METHOD /path`) and the parsed JSON body (contract section 1)."""

    key: str
    endpoint: str
    body: Any


@dataclass(frozen=True, slots=True)
class Principal:
    """A customer user, or a service that acts for a customer (contract section 2).

    `role` is what the token or the membership table said when the call began; `from_membership` tells that a
    decision must look at the table once more. `now_ms` is Redis's clock at that moment, `expires_at` is when the
    token ends, in seconds since the epoch.
    """

    customer_id: UUID
    actor: Actor
    role: Role
    expires_at: float
    now_ms: int
    from_membership: bool = False

    @property
    def is_service(self) -> bool:
        return self.actor.type is ActorType.SERVICE

    @property
    def may_write(self) -> bool:
        return self.role is not Role.VIEWER


class DeviceCaller(NamedTuple):
    """A device whose session token was good. A tuple, since every call of a device makes one.

    `now_ms` is Redis's clock at that moment: the clock of every lease (contract section 3, promise 8).
    """

    device_id: str
    uid: UUID
    customer_id: UUID
    token_hash: str
    now_ms: int

    @property
    def actor(self) -> Actor:
        return Actor(ActorType.DEVICE, self.device_id)
