"""The changes that the reference agent makes on request, each after a person has approved it.

There is one, real and harmless on every machine: the device's label, a text that people put on a device to tell it
from others. It lives in the agent's own state folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from aizen_gateway.dev.agent_disk import write_atomically
from aizen_gateway.dev.diagnostics import BadParameter, CannotRun, Diagnostic, Outcome, Parameters

_LABEL = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,64}\Z")


def remediations_table(folder: Path) -> Mapping[str, Diagnostic]:
    """Return what runs each remediation type. `folder` is the agent's state folder."""
    return {"agent.set_label": partial(set_label, folder=folder)}


async def set_label(parameters: Parameters, folder: Path) -> Outcome:
    """Write the device's label and read it back.

    Parameters: `label`, 1-64 printable characters. Any other parameter is refused: what a person approved is what
    runs. Result: `{label, previous}`, `previous` null when there was none.
    Raises `CannotRun` when the file cannot be written.
    """
    label = parameters.matching("label", _LABEL, "1 to 64 printable characters")
    if label is None:
        raise BadParameter("label is required")
    if unknown := parameters.unread():
        raise BadParameter(f"unknown parameters: {', '.join(unknown)}")
    writing = asyncio.ensure_future(asyncio.to_thread(_replace, folder / "label", label))
    # A thread cannot be stopped: when a cancel comes after it began, the true answer is that the label was set.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.shield(writing)
    previous, written = await writing
    if written != label:
        raise CannotRun("the label reads back differently from what was written")
    return Outcome(f"label set to {label!r}", {"label": written, "previous": previous})


def _replace(file: Path, label: str) -> tuple[str | None, str]:
    try:
        previous = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
        write_atomically(file, label.encode())
        return previous, file.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotRun(f"the label cannot be written: {(error.strerror or str(error)).lower()}") from None
