"""What becomes of a claimed command: run once, its result kept, and sent until the gateway has taken it.

The journal decides. A command whose result is known is answered with that result under the new claim; a remediation
that was started and whose end nobody knows is answered as interrupted; only what is left is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from aizen_gateway.dev.agent_api import Announce, Backoff, GatewayClient, GatewayRefused, GatewayUnavailable, NotWelcome
from aizen_gateway.dev.agent_disk import DiskThread
from aizen_gateway.dev.agent_result import result_body
from aizen_gateway.dev.agent_state import MAX_UNSENT, AgentState, EntryState, JournalEntry, JournalFull
from aizen_gateway.dev.agent_work import Claimed, CommandRun, Ending
from aizen_gateway.dev.diagnostics import Diagnostic
from aizen_gateway.domain.digest import command_digest
from aizen_gateway.domain.values import ResultStatus

_FINAL_CODES = frozenset(
    {"INVALID_CLAIM_TOKEN", "CLAIM_EXPIRED", "COMMAND_NOT_FOUND", "COMMAND_ALREADY_COMPLETED", "COMMAND_CANCELED"}
)
_UNACCEPTABLE = frozenset({400, 413, 422})
_FAILURES_IN_A_ROW = 3


class Commands:
    """The commands in this agent's hands. `close` it whatever happens; `finish` before that ends them well."""

    def __init__(
        self,
        client: GatewayClient,
        state: AgentState,
        disk: DiskThread,
        *,
        diagnostics: Mapping[str, Diagnostic],
        remediations: Mapping[str, Diagnostic],
        concurrency: int,
        visibility_timeout_ms: int,
        backoff: Backoff,
        announce: Announce,
    ) -> None:
        self._client = client
        self._state = state
        self._disk = disk
        self._diagnostics = diagnostics
        self._remediations = remediations
        self._concurrency = concurrency
        self._visibility_timeout_ms = visibility_timeout_ms
        self._backoff = backoff
        self._announce = announce
        self._claims: dict[UUID, Claimed] = {}
        self._runs: dict[UUID, CommandRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed_sends: dict[UUID, int] = {}
        self._changed = asyncio.Event()
        self._to_send = asyncio.Event()
        self._stopping = False

    @property
    def running(self) -> int:
        """How many commands are in hand now."""
        return len(self._tasks)

    async def room(self) -> int:
        """Wait until another command can begin at once, and return how many can.

        There is no room either while too many results are unsent: the disk's use is bounded.
        """
        while True:
            self._changed.clear()
            free = self._concurrency - len(self._tasks)
            if free > 0 and len(await self._disk(self._state.unsent)) < MAX_UNSENT:
                return free
            await self._changed.wait()

    def accept(self, data: Any) -> None:
        """Take one element of a claim's answer in hand."""
        try:
            claimed = Claimed.parse(data, self._visibility_timeout_ms)
        except ValueError as error:
            self._announce("claim_unreadable", {"reason": str(error)})
            return
        self._announce("claimed", {"command_id": str(claimed.id), "type": claimed.type})
        in_hand = claimed.id in self._claims
        self._claims[claimed.id] = claimed
        if in_hand:
            if claimed.id in self._runs:
                self._runs[claimed.id].renew(claimed)
            return
        task = asyncio.create_task(self._hand_back(claimed) if self._stopping else self._carry_out(claimed))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def take_no_more(self) -> None:
        """From now on hand back what is claimed, without beginning it."""
        self._stopping = True

    async def send_results(self) -> None:
        """Send what is unsent, for ever; what an earlier run of the agent left comes first."""
        while True:
            self._to_send.clear()
            trouble = await self._send_all()
            if trouble is None:
                self._backoff.reset()
                await self._to_send.wait()
            else:
                pause_s = self._backoff.next(trouble.retry_after_s)
                self._announce("send_again_later", {"reason": str(trouble), "seconds": round(pause_s, 2)})
                await asyncio.sleep(pause_s)

    async def finish(self, grace_s: float) -> None:
        """Let the work end for `grace_s` seconds, then stop it: diagnostics are handed back, results are kept.

        Call `take_no_more` first, and end `send_results`: what is unsent is tried once more here.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for run in self._runs.values():
            run.stop(Ending.STOPPING, "the agent was stopped")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        try:
            async with asyncio.timeout(grace_s):
                await self._send_all()
        except (TimeoutError, NotWelcome):
            self._announce("send_again_later", {"reason": "the agent stops"})

    async def close(self) -> None:
        """End what still runs, and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._announce("command_lost", {"reason": type(error).__name__})

    async def _hand_back(self, claimed: Claimed) -> None:
        try:
            await self._release(claimed)
        finally:
            self._claims.pop(claimed.id, None)

    async def _carry_out(self, claimed: Claimed) -> None:
        remediation = claimed.type not in self._diagnostics
        try:
            body = await self._result_of(claimed, remediation)
            latest = self._claims[claimed.id]
            if body is None:
                await self._release(latest)
                return
            await self._record(latest.id, latest.type, remediation, latest.claim_token, body)
        finally:
            self._claims.pop(claimed.id, None)
            self._runs.pop(claimed.id, None)

    async def _record(
        self, command: UUID, command_type: str, remediation: bool, claim_token: str, body: dict[str, Any]
    ) -> None:
        """Keep a result and have it sent. Without a working disk it is sent all the same."""
        try:
            await self._disk(self._state.record_result, command, command_type, remediation, claim_token, body)
        except OSError as error:
            self._announce("result_not_on_disk", {"command_id": str(command), "reason": error.strerror})
        self._to_send.set()

    async def _result_of(self, claimed: Claimed, remediation: bool) -> dict[str, Any] | None:
        """The body to send, from the journal or by running it; None when it was not done and may be done again."""
        known = await self._disk(self._state.entry, claimed.id)
        if known is not None and known.body is not None:
            self._announce("repeat", {"command_id": str(claimed.id), "type": claimed.type})
            return known.body
        work = self._remediations.get(claimed.type) if remediation else self._diagnostics[claimed.type]
        if work is None:
            return self._refuse(claimed, "unsupported on this device")
        if remediation and (refusal := await self._objection(claimed, known)) is not None:
            return self._refuse(claimed, refusal)
        run = CommandRun(
            self._claims[claimed.id],
            work,
            self._client,
            extension_ms=min(self._visibility_timeout_ms, 300_000),
            announce=self._announce,
        )
        self._runs[claimed.id] = run
        self._announce("started", {"command_id": str(claimed.id), "type": claimed.type})
        body = await run.run()
        if body is None and remediation:
            return self._refuse(claimed, "interrupted: the agent was stopped while it ran")
        if body is not None:
            fields = {"status": body["status"], "duration_ms": body["duration"], "reason": body.get("error")}
            told = {name: value for name, value in fields.items() if value is not None}
            self._announce("finished", {"command_id": str(claimed.id), "type": claimed.type, **told})
        return body

    async def _objection(self, claimed: Claimed, known: JournalEntry | None) -> str | None:
        """Why a remediation must not run, else None, and then it is marked as started."""
        if known is not None:
            if known.state is EntryState.STARTED:
                return "interrupted: it was started before, and how that ended is not known"
            return "it was run before, and its result is no longer kept"
        try:
            matches = command_digest(claimed.type, claimed.parameters) == claimed.digest
        except ValueError:
            matches = False
        if not matches:
            return "the digest does not match type and parameters: this is not what was approved"
        try:
            await self._disk(
                self._state.begin_remediation, claimed.id, claimed.type, claimed.claim_token, claimed.lives_s
            )
        except (JournalFull, OSError) as error:
            return f"it cannot be marked as started on the disk: {error}"
        return None

    def _refuse(self, claimed: Claimed, why: str) -> dict[str, Any]:
        self._announce("refused", {"command_id": str(claimed.id), "type": claimed.type, "reason": why})
        return result_body(ResultStatus.FAILURE, executed_at=datetime.now(UTC), duration_ms=0, error=why)

    async def _release(self, claimed: Claimed) -> None:
        """Hand it back. Where that fails, the lease runs out by itself."""
        try:
            await self._client.release(claimed.id, claimed.claim_token)
        except (GatewayRefused, GatewayUnavailable) as error:
            self._announce("not_released", {"command_id": str(claimed.id), "reason": str(error)})
        else:
            self._announce("released", {"command_id": str(claimed.id), "type": claimed.type})

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
            answer = await self._client.report(entry.id, {"claimToken": entry.claim_token, **body})
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
        self._changed.set()

    async def _send_less(self, entry: JournalEntry, refused: GatewayRefused) -> None:
        """The gateway cannot take this result, now or later: let it at least know how the command ended."""
        body = dict(entry.body or {})
        body.pop("output", None)
        body |= {"result": {}, "error": f"the gateway did not take the full result: {refused.code}"}
        await self._record(entry.id, entry.type, entry.remediation, entry.claim_token, body)
