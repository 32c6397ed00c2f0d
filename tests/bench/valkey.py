"""The bench's Valkey: with the allocator that distributions build it with, where the machine has that."""

from __future__ import annotations

import ctypes.util
import shutil

from aizen_gateway.dev.embedded import EmbeddedValkey

# The one in the wheel is built with the C library's own allocator. With hundreds of thousands of keys that looks long
# for memory, so that each call costs up to a quarter more: which would be measured as a cost of ours.
JEMALLOC = ctypes.util.find_library("jemalloc")
_ENV = shutil.which("env")


class BenchValkey(EmbeddedValkey):
    """A Valkey with jemalloc, or just Valkey where there is none (Debian: `libjemalloc2`)."""

    def _command(self) -> tuple[list[str], bytes]:
        command, settings = super()._command()
        if JEMALLOC is None or _ENV is None:
            return command, settings
        return [_ENV, f"LD_PRELOAD={JEMALLOC}", *command], settings
