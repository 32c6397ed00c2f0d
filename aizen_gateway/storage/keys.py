"""The name of every Redis key and channel, so that all keys of one device, or one customer, share a hash tag."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

# Hash tags of what every node of a cluster has of its own begin with it.
INDEX = "index"
WATCH = "aizen:{watch}:due"
TAKEN = "aizen:{watch}:taken"
# Devices whose names are kept: they cost more to make than to keep while a device calls, and a kilobyte each.
MOST_AT_HAND = 4096
AUDIT_LOCK = "aizen:{index}:audit"


class DeviceKeys(NamedTuple):
    """The keys of one device; `epoch` is of its credentials. `entrance` is what every call of a device touches."""

    sessions: str
    epoch: str
    device: str
    limit: str
    pending: str
    leased: str
    records: str
    channel: str
    entrance: tuple[str, ...]
    queue: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=MOST_AT_HAND)
    def of(cls, device_id: str) -> DeviceKeys:
        """The keys of the device with this id."""
        tag = "aizen:{" + device_id + "}:"
        sessions, device, limit = tag + "sessions", tag + "device", tag + "limit"
        pending, leased, records = tag + "pending", tag + "leased", tag + "records"
        return cls(
            *(sessions, tag + "epoch", device, limit, pending, leased, records, tag + "channel"),
            entrance=(sessions, device, limit),
            queue=(pending, leased, records),
        )


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
