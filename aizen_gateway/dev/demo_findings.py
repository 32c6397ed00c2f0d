"""What each diagnostic found, in one sentence, from the structured part of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_SHOWN = 4


def sentence(command: Mapping[str, Any]) -> str:
    """Say in one line how an ended command ended: what it found, or why it did not."""
    result = command.get("result") or {}
    if result.get("status") != "success":
        return f"{command['status']}: {result.get('error') or 'no result came'}"
    tell = _SENTENCES.get(command["type"])
    if tell is not None:
        try:
            return tell(result["result"])
        except (KeyError, TypeError, IndexError):
            # A device of another version tells it differently.
            pass
    return (result.get("output") or "done").splitlines()[0]


def _ping(found: Mapping[str, Any]) -> str:
    counts = f"{found['received']} of {found['sent']} echoes from {found['address']}"
    return f"{counts}, {found['rttMs']['avg']} ms on average" if found["rttMs"] else counts


def _dns(found: Mapping[str, Any]) -> str:
    addresses = [answer["value"] for answer in found["answers"]]
    return f"{found['name']} is {_listed(addresses)}" if addresses else f"{found['name']} is not known"


def _port_check(found: Mapping[str, Any]) -> str:
    return _listed(
        [
            f"port {port['port']} of {found['host']} is {port['state']}"
            + (f", connected in {port['connectMs']} ms" if port["open"] else "")
            for port in found["ports"]
        ]
    )


def _interfaces(found: Mapping[str, Any]) -> str:
    return _listed(
        [
            f"{one['name']} {one['addresses'][0]['address'] if one['addresses'] else one['state']}"
            for one in found["interfaces"]
        ]
    )


def _system_info(found: Mapping[str, Any]) -> str:
    return (
        f"{found['hostname']}, {found['os']}, {found['cpu']['count']} CPUs, "
        f"{found['memory']['usedPercent']} % of memory used"
    )


def _listed(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


_SENTENCES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "ping": _ping,
    "dns": _dns,
    "port_check": _port_check,
    "interfaces": _interfaces,
    "system_info": _system_info,
}
