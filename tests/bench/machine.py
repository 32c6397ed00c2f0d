"""On what a run was measured: without it no figure means anything."""

from __future__ import annotations

import asyncio
import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from .stage import Stage
from .valkey import JEMALLOC

_LOOK_S = 0.5


async def machine(stage: Stage) -> dict[str, str]:
    """Processor, cores and versions, by names for people, and how busy the machine is with other work."""
    server = await stage.valkey.info("server")
    async with stage.database() as database:
        postgres = await database.fetchval("show server_version")
    own, rest = stage.server_cores, stage.cores - stage.server_cores
    return {
        "processor": _processor(),
        "cores": f"server on {_named(own)}, everything else on {_named(rest or own)}, of {os.cpu_count()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "aiohttp": version("aiohttp"),
        "uvloop": version("uvloop"),
        "asyncpg": version("asyncpg"),
        "valkey": f"{server.get('valkey_version') or server['redis_version']} with {await _allocator(stage)}",
        "postgresql": str(postgres),
        "busy before": f"{await _busy():.0f} %",
    }


async def _allocator(stage: Stage) -> str:
    """Whose memory Valkey uses: what it is built with, unless another was put in its place."""
    return JEMALLOC or str((await stage.valkey.info("memory"))["mem_allocator"])


async def _busy() -> float:
    """How much of all cores is used while the bench does nothing."""
    psutil.cpu_percent()
    await asyncio.sleep(_LOOK_S)
    return psutil.cpu_percent()


def _named(cores: set[int]) -> str:
    return ",".join(map(str, sorted(cores)))


def _processor() -> str:
    found = Path("/proc/cpuinfo")
    for line in found.read_text("utf-8").splitlines() if found.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
