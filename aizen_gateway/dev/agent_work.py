"""One claimed command at work: its lease is kept, its time is limited, and a cancel reaches it.

How a command was claimed and how its result travels is none of this module's business; it takes a claim, runs what it
is given, and says how that ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from aizen_gateway.dev.agent_api import Announce, Backoff, GatewayRefused, GatewayUnavailable, happens
from aizen_gateway.dev.agent_line import Line
from aizen_gateway.dev.agent_result import result_body
from aizen_gateway.dev.diagnostics import CannotRun, Diagnostic, Outcome, Parameters
from aizen_gateway.domain.values import ResultStatus

_DEFAULT_TIMEOUT_MS = 300_000
# What is left of the time for the way back; a tenth of it when that is less.
_REPORTING_S = 0.5
_LEASE_LOST = frozenset({"CLAIM_EXPIRED", "INVALID_CLAIM_TOKEN"})


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim as the gateway handed it out. Times are in seconds; `received_at` is the event loop's clock."""

    id: UUID
    type: str
    parameters: dict[str, Any]
    claim_token: str = field(repr=False)
    lease_s: float
    timeout_s: float
    digest: str
    lives_s: float | None
    received_at: float

    @property
    def deadline(self) -> float:
        """When the work must have ended, on the event loop's clock: a bit early, so that the answer is not late."""
        return self.received_at + self.timeout_s - min(_REPORTING_S, self.timeout_s / 10)

    @classmethod
    def parse(cls, data: Any, visibility_timeout_ms: int) -> Self:
        """Read one element of a claim's answer. Raises `ValueError` for what is no claim."""
        try:
            lease_ms = data.get("leaseMs", visibility_timeout_ms)
            timeout_ms = data.get("timeoutMs", _DEFAULT_TIMEOUT_MS)
            claimed = cls(
                id=UUID(data["id"]),
                type=data["type"],
                parameters=data["parameters"],
                claim_token=data["claimToken"],
                lease_s=max(lease_ms, 0) / 1000,
                timeout_s=max(timeout_ms, 0) / 1000,
                digest=str(data.get("digest")),
                lives_s=_lifetime_s(data),
                received_at=asyncio.get_running_loop().time(),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a claimed command: {error!r}") from None
        fields = (claimed.type, claimed.claim_token)
        if not all(isinstance(text, str) for text in fields) or not isinstance(claimed.parameters, dict):
            raise ValueError("not a claimed command: wrong types")
        return claimed


def _lifetime_s(data: Mapping[str, Any]) -> float | None:
    """Seconds until the gateway hands it out no more, by the gateway's own two times; None when it does not tell."""
    try:
        ends, now = (datetime.fromisoformat(data[name]) for name in ("expiresAt", "timestamp"))
        return (ends - now).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


class Ending(StrEnum):
    """Why work was stopped before it ended by itself."""

    CANCELED = "canceled"
    TIMEOUT = "timeout"
    STOPPING = "stopping"


class CommandRun:
    """Runs one claim. `run` it once; `renew` it when the same command is claimed again meanwhile."""

    def __init__(
        self, claimed: Claimed, work: Diagnostic, line: Line, *, extension_ms: int, announce: Announce
    ) -> None:
        self.claimed = claimed
        self._work = work
        self._line = line
        self._extension_ms = extension_ms
        self._announce = announce
        self._renewed = asyncio.Event()
        self._ending: asyncio.Future[tuple[Ending, str]] = asyncio.get_running_loop().create_future()

    def renew(self, claimed: Claimed) -> None:
        """The lease was lost and the command was handed out again, to us: the work goes on under the new claim."""
        self.claimed = claimed
        self._renewed.set()

    def stop(self, ending: Ending, why: str) -> None:
        """End the work; the first reason that is given counts."""
        if not self._ending.done():
            self._ending.set_result((ending, why))

    async def run(self) -> dict[str, Any] | None:
        """Return the result's body, or None when the agent stops and the work was not done.

        `timeoutMs` counts from the claim. What has really ended counts as it ended, even when a cancel or the
        time-out came in the same moment.
        """
        executed_at, began = datetime.now(UTC), time.monotonic()
        parameters = Parameters(self.claimed.parameters)
        work = asyncio.ensure_future(_as_coroutine(self._work(parameters)))
        keeper = asyncio.create_task(self._keep_lease())
        try:
            left_s = self.claimed.deadline - asyncio.get_running_loop().time()
            awaited: set[asyncio.Future[Any]] = {work, self._ending}
            await asyncio.wait(awaited, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
            self.stop(Ending.TIMEOUT, f"not done within {self.claimed.timeout_s:g} s")
        finally:
            work.cancel()
            keeper.cancel()
            await asyncio.gather(work, keeper, return_exceptions=True)
        ending, why = self._ending.result()
        if work.cancelled() and ending is Ending.STOPPING:
            return None
        status, outcome, error = _judge(work, ending, why)
        if outcome is not None and (unread := parameters.unread()):
            outcome = Outcome(outcome.output, {**outcome.result, "ignoredParameters": unread})
        duration_ms = round((time.monotonic() - began) * 1000)
        return result_body(status, executed_at=executed_at, duration_ms=duration_ms, outcome=outcome, error=error)

    async def _keep_lease(self) -> None:
        """Extend the lease at about half of it, for as long as the work goes on."""
        lease_s = self.claimed.lease_s
        backoff = Backoff(0.25, 10.0)
        pause_s = lease_s / 2
        while True:
            # Jitter: many devices that claimed together do not extend together.
            if await happens(self._renewed, pause_s * random.uniform(0.85, 1.0)):
                pause_s = self.claimed.lease_s / 2
                continue
            token = self.claimed.claim_token
            try:
                answer = await self._line.extend(self.claimed.id, token, self._extension_ms)
            except GatewayUnavailable as unavailable:
                pause_s = backoff.next(unavailable.retry_after_s)
                continue
            except GatewayRefused as refused:
                if refused.code not in _LEASE_LOST:
                    self.stop(Ending.CANCELED, f"the gateway says {refused.code}")
                    return
                # The result still counts while nobody else has claimed the command, so the work goes on.
                self._announce("lease_lost", {"command_id": str(self.claimed.id), "reason": refused.code})
                if token == self.claimed.claim_token:
                    await self._renewed.wait()
                pause_s = 0.0
                continue
            if answer.get("cancelRequested") is True:
                self.stop(Ending.CANCELED, "canceled on request")
                return
            backoff.reset()
            self._announce("lease_extended", {"command_id": str(self.claimed.id)})
            pause_s = self._extension_ms / 2000


def _judge(work: asyncio.Future[Outcome], ending: Ending, why: str) -> tuple[ResultStatus, Outcome | None, str | None]:
    if work.cancelled():
        return (ResultStatus.TIMEOUT if ending is Ending.TIMEOUT else ResultStatus.CANCELED), None, why
    failure = work.exception()
    if failure is None:
        return ResultStatus.SUCCESS, work.result(), None
    if isinstance(failure, CannotRun):
        return ResultStatus.FAILURE, None, str(failure)
    # A fault of the agent's own: its kind is enough for the report, the rest might show what a log must not.
    return ResultStatus.FAILURE, None, f"the agent failed: {type(failure).__name__}"


async def _as_coroutine(awaited: Awaitable[Outcome]) -> Outcome:
    return await awaited
