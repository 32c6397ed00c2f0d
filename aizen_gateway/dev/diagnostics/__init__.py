"""The diagnostics that a device can be asked for, each really run on this device and changing nothing.

Every function documents its parameters and its result; what it finds wrong is a finding, and what it cannot do at all
it refuses with `CannotRun`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from aizen_gateway.dev.diagnostics.connectivity import connectivity
from aizen_gateway.dev.diagnostics.dns_lookup import dns_lookup
from aizen_gateway.dev.diagnostics.http import bandwidth, http_check
from aizen_gateway.dev.diagnostics.logs import DEFAULT_LOG_FILES, logs
from aizen_gateway.dev.diagnostics.network import arp, interfaces, routes
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import BadParameter, Parameters
from aizen_gateway.dev.diagnostics.ping import ping
from aizen_gateway.dev.diagnostics.ports import port_check
from aizen_gateway.dev.diagnostics.system import system_info
from aizen_gateway.dev.diagnostics.traceroute import traceroute

__all__ = [
    "DEFAULT_LOG_FILES",
    "BadParameter",
    "CannotRun",
    "Diagnostic",
    "Outcome",
    "Parameters",
    "diagnostics_table",
]

Diagnostic = Callable[[Parameters], Awaitable[Outcome]]


def diagnostics_table(
    *, log_files: Sequence[Path] = DEFAULT_LOG_FILES, targets: Sequence[str] = ()
) -> Mapping[str, Diagnostic]:
    """Return what runs each diagnostic type of the contract (section 3, Command types).

    `log_files` are the only files that `logs` may show, `targets` (`host:port`) what `connectivity` tries by itself.
    """
    return {
        "ping": ping,
        "traceroute": traceroute,
        "dns": dns_lookup,
        "port_check": port_check,
        "http_check": http_check,
        "interfaces": interfaces,
        "routes": routes,
        "arp": arp,
        "connectivity": partial(connectivity, default_targets=targets),
        "bandwidth": bandwidth,
        "system_info": system_info,
        "logs": partial(logs, allowed=log_files),
    }
