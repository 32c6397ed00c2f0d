"""The name of every Redis key and channel, so that all keys of one device, or one customer, share a hash tag."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

EPOCH = "aizen:{index}:epoch"
BUILDING = "aizen:{index}:building"
WATCH = "aizen:{watch}:due"
AUDIT_LOCK = "aizen:{index}:audit"
INSTANCES = "aizen:{index}:instances"


@dataclass(frozen=True, slots=True)
class DeviceKeys:
    """The keys of one device; `epoch` is of its credentials."""

    sessions: str
    epoch: str
    device: str
    limit: str
    pending: str
    leased: str
    records: str
    channel: str

    @classmethod
    def of(cls, device_id: str) -> DeviceKeys:
        tag = "aizen:{" + device_id + "}:"
        return cls(
            tag + "sessions",
            tag + "epoch",
            tag + "device",
            tag + "limit",
            tag + "pending",
            tag + "leased",
            tag + "records",
            tag + "channel",
        )

    @property
    def entrance(self) -> list[str]:
        """What every call of a device touches."""
        return [self.sessions, self.device, self.limit]

    @property
    def queue(self) -> list[str]:
        return [self.pending, self.leased, self.records]


def instance_sockets(instance_id: str) -> str:
    """The devices whose sockets an instance holds, with the ids of the connections."""
    return "aizen:{i:" + instance_id + "}:sockets"


def customer_stream(customer_id: UUID) -> str:
    """The recent events of a customer."""
    return f"aizen:{{c:{customer_id}}}:events"


def customer_channel(customer_id: UUID) -> str:
    """Where a customer's events are published."""
    return f"aizen:{{c:{customer_id}}}:channel"


def subject_version(customer_id: UUID, subject: str) -> str:
    """The version of the last event about a subject, such as `command:<id>`."""
    return f"aizen:{{c:{customer_id}}}:version:{subject}"


def user_limit(customer_id: UUID, actor: str) -> str:
    """The rate limit of one user of a customer."""
    return f"aizen:{{c:{customer_id}}}:limit:{actor}"


def failures_of_device(device_id: str) -> str:
    """Failed tries to sign in or register as a device."""
    return "aizen:{" + device_id + "}:failures"


def failures_of_address(address: str) -> str:
    """Failed tries to sign in or register from an address."""
    return "aizen:{a:" + address + "}:failures"
