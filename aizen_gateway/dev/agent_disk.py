"""The agent's way to its disk: writes that a power cut cannot halve, and a thread in which to wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

P = ParamSpec("P")
T = TypeVar("T")


class DiskThread:
    """One thread for the disk. It is no other work's, so that a resolver that hangs cannot hold up a result."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent-disk")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function there, after those before it. A cancel stops the waiting, not the call."""
        call = partial(function, *args, **kwargs)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._executor, call))

    def close(self) -> None:
        """Wait for the last call and end the thread."""
        self._executor.shutdown()


def write_atomically(file: Path, content: bytes) -> None:
    """Replace `file` (mode 0600) so that a power cut leaves the old content or the new, never half of either.

    A temporary file is written and synced, takes the place of the old one in one step, and then the folder is synced:
    once this returns, the new content is there for good. Raises `OSError`.
    """
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with _folder(file.parent) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
