"""`system_info`: what this device is, and how it is doing."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aizen_gateway import __version__
from aizen_gateway.dev.diagnostics.metrics import CpuMeter, memory, memory_percent, uptime_s
from aizen_gateway.dev.diagnostics.outcome import Outcome
from aizen_gateway.dev.diagnostics.parameters import Parameters
from aizen_gateway.domain.clock import rfc3339

_SAMPLE_S = 0.2
_CPU_INFO = Path("/proc/cpuinfo")
_MOUNTS = Path("/proc/self/mounts")
_THERMAL = Path("/sys/class/thermal")
_MAX_DISKS = 16
_MAX_SENSORS = 16


async def system_info(_: Parameters) -> Outcome:
    """Describe this device. No parameters.

    Result: `{hostname, os, kernel, architecture, cpu: {count, model, percent, load}, memory: {totalBytes,
    availableBytes, usedPercent, swapTotalBytes, swapFreeBytes}, disks: [{path, device, totalBytes, freeBytes,
    usedPercent}], temperatures: [{sensor, celsius}], uptimeS, time, timezone, agent, python}`. What the system does
    not tell is null or absent.
    """
    meter = await asyncio.to_thread(CpuMeter)
    await asyncio.sleep(_SAMPLE_S)
    result = await asyncio.to_thread(_describe, meter)
    cpu, used = result["cpu"], result["memory"]
    lines = [
        f"{result['hostname']}: {result['os']}, {result['kernel']} on {result['architecture']}",
        f"cpu: {cpu['count']} x {cpu['model'] or 'unknown'}, {cpu['percent']} % busy, load {cpu['load']}",
        f"memory: {used['usedPercent']} % of {used['totalBytes']} bytes used",
        *(
            f"disk {disk['path']}: {disk['usedPercent']} % of {disk['totalBytes']} bytes used"
            for disk in result["disks"]
        ),
        f"up for {result['uptimeS']} s, now {result['time']}",
    ]
    return Outcome("\n".join(lines), result)


def _describe(meter: CpuMeter) -> dict[str, Any]:
    sizes = memory()
    uptime = uptime_s()
    return {
        "hostname": socket.gethostname(),
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": {
            "count": os.cpu_count(),
            "model": _cpu_model(),
            "percent": meter.percent(),
            "load": [round(each, 2) for each in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        },
        "memory": {
            "totalBytes": sizes.get("MemTotal"),
            "availableBytes": sizes.get("MemAvailable"),
            "usedPercent": memory_percent(),
            "swapTotalBytes": sizes.get("SwapTotal"),
            "swapFreeBytes": sizes.get("SwapFree"),
        },
        "disks": _disks(),
        "temperatures": _temperatures(),
        "uptimeS": None if uptime is None else round(uptime, 1),
        "time": rfc3339(datetime.now(UTC)),
        "timezone": time.strftime("%Z"),
        "agent": f"aizen-gateway-agent {__version__}",
        "python": platform.python_version(),
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.version()}"[:200]


def _cpu_model() -> str | None:
    try:
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()[:200]
    except OSError:
        pass
    return platform.processor() or None


def _disks() -> list[dict[str, Any]]:
    """The file systems that lie on a device of their own, and `/` whatever it lies on."""
    places = {"/": "root"}
    try:
        for line in _MOUNTS.read_text(errors="replace").splitlines():
            device, path, *_ = line.split(" ")
            if path == "/" or (device.startswith("/dev/") and device not in places.values()):
                places[path] = device
    except OSError:
        pass
    found = []
    for path, device in list(places.items())[:_MAX_DISKS]:
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        found.append(
            {
                "path": path,
                "device": device,
                "totalBytes": usage.total,
                "freeBytes": usage.free,
                "usedPercent": round(100 * usage.used / usage.total, 1) if usage.total else None,
            }
        )
    return found


def _temperatures() -> list[dict[str, Any]]:
    found = []
    for zone in sorted(_THERMAL.glob("thermal_zone*"))[:_MAX_SENSORS]:
        try:
            celsius = int((zone / "temp").read_text()) / 1000
            found.append({"sensor": (zone / "type").read_text().strip(), "celsius": celsius})
        except (OSError, ValueError):
            continue
    return found
