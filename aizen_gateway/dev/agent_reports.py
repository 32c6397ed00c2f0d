"""Results on their way to the gateway: each is kept on the disk, and sent until the gateway has had its last word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

from aizen_gateway.dev.agent_api import Announce, Backoff, GatewayRefused, GatewayUnavailable, NotWelcome, happens
from aizen_gateway.dev.agent_disk import DiskThread
from aizen_gateway.dev.agent_line import Line
from aizen_gateway.dev.agent_state import AgentState, JournalEntry

_FINAL_CODES = frozenset(
    {"INVALID_CLAIM_TOKEN", "CLAIM_EXPIRED", "COMMAND_NOT_FOUND", "COMMAND_ALREADY_COMPLETED", "COMMAND_CANCELED"}
)
_UNACCEPTABLE = frozenset({400, 413, 422})
_FAILURES_IN_A_ROW = 3


class Reports:
    """The results that this agent owes. `on_settled` is called whenever one is owed no longer."""

    def __init__(
        self,
        line: Line,
        state: AgentState,
        disk: DiskThread,
        *,
        backoff: Backoff,
        announce: Announce,
        on_settled: Callable[[], None],
    ) -> None:
        self._line = line
        self._state = state
        self._disk = disk
        self._backoff = backoff
        self._announce = announce
        self._on_settled = on_settled
        self._failed_sends: dict[UUID, int] = {}
        self._to_send = asyncio.Event()
        self._hurry = asyncio.Event()

    async def keep(
        self, command: UUID, command_type: str, remediation: bool, claim_token: str, body: dict[str, Any]
    ) -> None:
        """Keep a result and have it sent. Without a working disk it is sent all the same."""
        try:
            await self._disk(self._state.record_result, command, command_type, remediation, claim_token, body)
        except OSError as error:
            self._announce("result_not_on_disk", {"command_id": str(command), "reason": error.strerror})
        self._to_send.set()

    def hurry(self) -> None:
        """The gateway can be reached again: what waits for another try need not wait longer."""
        self._hurry.set()

    async def run(self) -> None:
        """Send what is unsent, for ever; what an earlier run of the agent left comes first. Raises `NotWelcome`."""
        while True:
            self._to_send.clear()
            self._hurry.clear()
            trouble = await self._send_all()
            if trouble is None:
                self._backoff.reset()
                await self._to_send.wait()
            else:
                pause_s = self._backoff.next(trouble.retry_after_s)
                self._announce("send_again_later", {"reason": str(trouble), "seconds": round(pause_s, 2)})
                await happens(self._hurry, pause_s)

    async def last_try(self, within_s: float) -> None:
        """Send what is unsent once more, as the agent stops."""
        try:
            async with asyncio.timeout(within_s):
                await self._send_all()
        except (TimeoutError, NotWelcome):
            self._announce("send_again_later", {"reason": "the agent stops"})

    async def _send_all(self) -> GatewayUnavailable | None:
        """Send each unsent result once, those that failed least often first, and return the last trouble, if any."""
        trouble: GatewayUnavailable | None = None
        failures = 0
        unsent = await self._disk(self._state.unsent)
        for entry in sorted(unsent, key=lambda entry: self._failed_sends.get(entry.id, 0)):
            try:
                await self._send(entry)
            except GatewayUnavailable as unavailable:
                self._failed_sends[entry.id] = self._failed_sends.get(entry.id, 0) + 1
                trouble = unavailable
                failures += 1
                if failures == _FAILURES_IN_A_ROW:
                    break
            else:
                self._failed_sends.pop(entry.id, None)
                failures = 0
        return trouble

    async def _send(self, entry: JournalEntry) -> None:
        """Send one result, and settle it when the gateway has had its last word. Raises `GatewayUnavailable`."""
        told: dict[str, object] = {"command_id": str(entry.id), "type": entry.type}
        body = entry.body or {}
        try:
            answer = await self._line.report(entry.id, {"claimToken": entry.claim_token, **body})
        except GatewayRefused as refused:
            if refused.status in _UNACCEPTABLE and (body.get("result") or "output" in body):
                await self._send_less(entry, refused)
                return
            if refused.code not in _FINAL_CODES and refused.status not in _UNACCEPTABLE:
                raise GatewayUnavailable(str(refused)) from None
            self._announce("result_dropped", {**told, "reason": refused.code})
        else:
            self._announce("reported", {**told, "status": answer.get("status"), "late": answer.get("late")})
        try:
            await self._disk(self._state.settle, entry.id, entry.claim_token)
        except OSError as error:
            self._announce("result_not_on_disk", {**told, "reason": error.strerror})
        self._on_settled()

    async def _send_less(self, entry: JournalEntry, refused: GatewayRefused) -> None:
        """The gateway cannot take this result, now or later: let it at least know how the command ended."""
        body = dict(entry.body or {})
        body.pop("output", None)
        body |= {"result": {}, "error": f"the gateway did not take the full result: {refused.code}"}
        await self.keep(entry.id, entry.type, entry.remediation, entry.claim_token, body)
