"""The name of every Redis key and channel, so that all keys of one device, or one customer, share a hash tag."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from uuid import UUID

# Hash tags of what every node of a cluster has of its own begin with it.
INDEX = "index"
WATCH = "aizen:{watch}:due"
TAKEN = "aizen:{watch}:taken"
AUDIT_LOCK = "aizen:{index}:audit"


@dataclass(frozen=True)
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
    @lru_cache(maxsize=16_384)
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

    @cached_property
    def entrance(self) -> tuple[str, ...]:
        """What every call of a device touches."""
        return (self.sessions, self.device, self.limit)

    @cached_property
    def queue(self) -> tuple[str, ...]:
        return (self.pending, self.leased, self.records)


def epoch(tag: str) -> str:
    """The mark that a part of the index is whole: gone with what was there."""
    return "aizen:{" + tag + "}:epoch"


def building(tag: str) -> str:
    """Who is filling a part of the index."""
    return "aizen:{" + tag + "}:building"


def instances(tag: str) -> str:
    """Which instances live, and when each last said so."""
    return "aizen:{" + tag + "}:instances"


def instance_sockets(instance_id: str) -> str:
    """The sockets that an instance holds: the ids of the connections, each with its device."""
    return "aizen:{i:" + instance_id + "}:sockets"


def customer_stream(customer_id: UUID) -> str:
    """The recent events of a customer."""
    return f"aizen:{{c:{customer_id}}}:events"


def customer_tail(customer_id: UUID) -> str:
    """The id of a customer's last event; it outlives the events."""
    return f"aizen:{{c:{customer_id}}}:tail"


def customer_channel(customer_id: UUID) -> str:
    """Where a customer's events are published."""
    return f"aizen:{{c:{customer_id}}}:channel"


def customer_versions(customer_id: UUID) -> str:
    """The versions of the last events about subjects, such as `command:<id>`: of the latest ones only."""
    return f"aizen:{{c:{customer_id}}}:versions"


def user_limit(customer_id: UUID, actor: str) -> str:
    """The rate limit of one user of a customer."""
    return f"aizen:{{c:{customer_id}}}:limit:{actor}"


def failures_of_device(device_id: str) -> str:
    """Failed tries to sign in or register as a device."""
    return "aizen:{" + device_id + "}:failures"


def failures_of_address(address: str) -> str:
    """Failed tries to sign in or register from an address."""
    return "aizen:{a:" + address + "}:failures"
