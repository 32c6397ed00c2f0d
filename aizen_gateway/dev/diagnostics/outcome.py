"""What a diagnostic hands back, so that the agent can turn any of them into a result of the contract (section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """Findings of something that really ran.

    A diagnostic that finds trouble has done its work: an unreachable host is a success whose `result` says
    `reachable: false`. What could not be run at all raises `CannotRun` instead.
    """

    output: str
    result: dict[str, Any] = field(default_factory=dict)


class CannotRun(Exception):
    """The command cannot be run on this device, or not with these parameters; the text is the reason a person reads."""
