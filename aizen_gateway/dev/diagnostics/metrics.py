"""Load figures of this device for heartbeats and for `system_info`, from /proc where there is one."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_MEMORY = Path("/proc/meminfo")
_UPTIME = Path("/proc/uptime")


class CpuMeter:
    """Tells how busy the processors have been since it was asked last."""

    def __init__(self) -> None:
        self._last = _cpu_ticks()

    def percent(self) -> float | None:
        """0 to 100 over all processors; None where the system does not tell, or no time has passed."""
        before, self._last = self._last, _cpu_ticks()
        if before is None or self._last is None:
            return None
        busy, whole = self._last[0] - before[0], self._last[1] - before[1]
        return round(min(100.0, max(0.0, 100 * busy / whole)), 1) if whole > 0 else None


def memory() -> dict[str, int]:
    """The lines of /proc/meminfo in bytes, by the kernel's names; empty where there is none."""
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if number.isdecimal():
            found[name] = int(number) * (1024 if unit == "kB" else 1)
    return found


def memory_percent() -> float | None:
    """The share of memory that programs could not get any more, 0 to 100."""
    found = memory()
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    return round(100 * (1 - available / total), 1) if total and available is not None else None


def uptime_s() -> float | None:
    """Seconds since the device started."""
    try:
        return float(_UPTIME.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
        return time.clock_gettime(clock) if clock is not None else None


def heartbeat_metrics(meter: CpuMeter) -> dict[str, float]:
    """The numbers of a heartbeat (contract section 3): `cpu` and `memory` in percent, `uptime` in seconds, `load1`.

    What the system does not tell is left out. Reads files, so it blocks for a moment.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    told = {"cpu": meter.percent(), "memory": memory_percent(), "uptime": uptime_s(), "load1": load}
    return {name: round(value, 2) for name, value in told.items() if value is not None}


def _cpu_ticks() -> tuple[int, int] | None:
    """Busy and all ticks since the start. The last two columns, guests, are counted in the first ones already."""
    try:
        ticks = [int(number) for number in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(ticks) < 5:
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
