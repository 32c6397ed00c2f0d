"""What becomes of a claimed command: run once, whichever way and however often it comes, and its result handed on.

The journal decides. A command whose result is known is answered with that result under the new claim; a remediation
that was started and whose end nobody knows is answered as interrupted; only what is left is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from aizen_gateway.dev.agent_api import Announce, Backoff, GatewayRefused, GatewayUnavailable
from aizen_gateway.dev.agent_disk import DiskThread
from aizen_gateway.dev.agent_line import Line
from aizen_gateway.dev.agent_reports import Reports
from aizen_gateway.dev.agent_result import result_body
from aizen_gateway.dev.agent_state import MAX_UNSENT, AgentState, EntryState, JournalEntry, JournalFull
from aizen_gateway.dev.agent_work import Claimed, CommandRun, Ending
from aizen_gateway.dev.diagnostics import Diagnostic
from aizen_gateway.domain.digest import command_digest
from aizen_gateway.domain.values import ResultStatus


class Commands:
    """The commands in this agent's hands. `close` it whatever happens; `finish` before that ends them well."""

    def __init__(
        self,
        line: Line,
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
        self._line = line
        self._state = state
        self._disk = disk
        self._diagnostics = diagnostics
        self._remediations = remediations
        self._concurrency = concurrency
        self._visibility_timeout_ms = visibility_timeout_ms
        self._announce = announce
        self._changed = asyncio.Event()
        self.reports = Reports(line, state, disk, backoff=backoff, announce=announce, on_settled=self._changed.set)
        self._claims: dict[UUID, Claimed] = {}
        self._runs: dict[UUID, CommandRun] = {}
        self._waiting: dict[UUID, asyncio.Timeout] = {}
        self._unwanted: set[UUID] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(concurrency)
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

    def cancel(self, data: Any) -> None:
        """The gateway says that a command is not wanted any more: `{id, reason}`. One that is not in hand is none."""
        try:
            command, reason = UUID(data["id"]), data.get("reason")
        except (KeyError, TypeError, AttributeError, ValueError):
            return
        if command not in self._claims:
            return
        self._announce("cancel", {"command_id": str(command)})
        self._unwanted.add(command)
        if command in self._runs:
            self._runs[command].stop(Ending.CANCELED, f"canceled: {reason}" if reason else "canceled on request")
        elif command in self._waiting:
            _end_now(self._waiting[command])

    def take_no_more(self) -> None:
        """From now on hand back what is claimed, and what waits for its turn, without beginning it."""
        self._stopping = True
        for patience in self._waiting.values():
            _end_now(patience)

    async def finish(self, grace_s: float) -> None:
        """Let the work end for `grace_s` seconds, then stop it: diagnostics are handed back, results are kept.

        Call `take_no_more` first, and end `reports.run`: what is unsent is tried once more here.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for run in self._runs.values():
            run.stop(Ending.STOPPING, "the agent was stopped")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        await self.reports.last_try(grace_s)

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
            await self.reports.keep(latest.id, latest.type, remediation, latest.claim_token, body)
        finally:
            self._claims.pop(claimed.id, None)
            self._runs.pop(claimed.id, None)
            self._unwanted.discard(claimed.id)

    async def _result_of(self, claimed: Claimed, remediation: bool) -> dict[str, Any] | None:
        """The body to send, from the journal or by running it; None when it was not done and may be done again."""
        known = await self._disk(self._state.entry, claimed.id)
        if known is not None and known.body is not None:
            self._announce("repeat", {"command_id": str(claimed.id), "type": claimed.type})
            return known.body
        work = self._remediations.get(claimed.type) if remediation else self._diagnostics[claimed.type]
        if work is None:
            return self._refuse(claimed, "unsupported on this device")
        if not await self._turn(claimed):
            return None
        try:
            if remediation and (refusal := await self._objection(claimed, known)) is not None:
                return self._refuse(claimed, refusal)
            body = await self._run(claimed, work)
        finally:
            self._places.release()
        if body is None and remediation:
            return self._refuse(claimed, "interrupted: the agent was stopped while it ran")
        return body

    async def _turn(self, claimed: Claimed) -> bool:
        """Wait for a place to work in; False when there is none while the claim is fresh, or the work is not wanted.

        The gateway pushes without knowing what this device still has in hand from before its line was cut.
        """
        try:
            async with asyncio.timeout(claimed.lease_s / 2) as patience:
                self._waiting[claimed.id] = patience
                if self._stopping or claimed.id in self._unwanted:
                    return False
                if len(await self._disk(self._state.unsent)) >= MAX_UNSENT:
                    await asyncio.sleep(claimed.lease_s)
                await self._places.acquire()
                return True
        except TimeoutError:
            return False
        finally:
            del self._waiting[claimed.id]

    async def _run(self, claimed: Claimed, work: Diagnostic) -> dict[str, Any] | None:
        extension_ms = min(self._visibility_timeout_ms, 300_000)
        run = CommandRun(self._claims[claimed.id], work, self._line, extension_ms=extension_ms, announce=self._announce)
        self._runs[claimed.id] = run
        self._announce("started", {"command_id": str(claimed.id), "type": claimed.type})
        body = await run.run()
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
            await self._line.release(claimed.id, claimed.claim_token)
        except (GatewayRefused, GatewayUnavailable) as error:
            self._announce("not_released", {"command_id": str(claimed.id), "reason": str(error)})
        else:
            self._announce("released", {"command_id": str(claimed.id), "type": claimed.type})


def _end_now(patience: asyncio.Timeout) -> None:
    patience.reschedule(asyncio.get_running_loop().time())
