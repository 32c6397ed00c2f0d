"""What is owed to clients, and what they may be told while something is broken: the judge of everything that happened.

Calls are judged as they come, by the disturbance they fell into. Commands are judged against the truth once nothing of
them is under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Within this many seconds after the end of a disturbance every kind of call works again.
RECOVERS_S = 10.0
# `status` of calls that got no answer: the connection broke, or the client gave up.
BROKEN, GAVE_UP = 0, -1
FINAL = frozenset({"succeeded", "failed", "timed_out", "canceled", "expired", "undeliverable", "rejected"})
REPORTED = frozenset({"succeeded", "failed"})
ENDS = {"success": "succeeded", "failure": "failed", "timeout": "timed_out", "canceled": "canceled"}
# What devices are told of a claim after which there was another, or whose lease has ended.
OUTDATED = frozenset({"INVALID_CLAIM_TOKEN", "COMMAND_ALREADY_COMPLETED"})
_LAPSED = frozenset({"INVALID_CLAIM_TOKEN", "CLAIM_EXPIRED"})

_MOST_TOLD = 50


@dataclass(frozen=True, slots=True)
class Call:
    """One call and how it ended. Times are the loop's, in seconds; `attempt` counts the tries of the same call.

    `signed_in_at` is when the device asked for the token it used, None for calls that need none.
    """

    kind: str
    instance: str
    started: float
    ended: float
    status: int
    code: str | None = None
    retry_after: bool = False
    attempt: int = 1
    signed_in_at: float | None = None

    @property
    def outcome(self) -> str:
        """For people: what came of it."""
        if self.status in (BROKEN, GAVE_UP):
            return "no answer" if self.status == GAVE_UP else "broken connection"
        return f"{self.status} {self.code or ''}".strip()


@dataclass(slots=True)
class Disturbance:
    """What is broken, for whom, and what clients may see of it while it lasts and soon after.

    `unavailable` and `broken` are the instances whose clients may get 503, or lose their connection; calls of the
    kinds in `untouched` must work all the same. `emptied_at` is when what Redis held was lost.
    """

    name: str
    began: float
    unavailable: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    untouched: frozenset[str] = frozenset()
    healed: float | None = None
    emptied_at: float | None = None

    def covers(self, call: Call) -> bool:
        """Whether the call fell into it, or into the time in which all must recover."""
        return call.ended >= self.began and (self.healed is None or call.started <= self.healed + RECOVERS_S)

    def excuses(self, call: Call) -> bool:
        """Whether the call may have ended as it did for its sake."""
        if not self.covers(call):
            return False
        if call.status == 503:
            told = call.retry_after and call.code in (None, "UNAVAILABLE")
            return told and call.instance in self.unavailable and call.kind not in self.untouched
        if call.status == BROKEN:
            return call.instance in self.broken and (self.healed is None or call.started <= self.healed)
        return False


@dataclass(frozen=True, slots=True)
class Delivery:
    """A command in the hands of a device: what it was granted, by the clock of leases in milliseconds."""

    command_id: str
    kind: str
    attempt: int
    token: str
    granted_ms: int
    output: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A command as the gateway shows it in the end; `ends` is how many records of its end the audit log holds."""

    status: str
    kind: str
    attempt: int
    result: Mapping[str, Any] | None = None
    ends: int = 1


@dataclass(slots=True)
class _Command:
    kind: str
    answered: bool = False
    reached: bool = False
    deliveries: list[Delivery] = field(default_factory=list)
    until_ms: dict[str, int] = field(default_factory=dict)
    taken: list[Mapping[str, Any]] = field(default_factory=list)
    # Attempts whose result was refused for a newer claim's sake.
    outdated: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Ledger:
    """Everything that was asked, answered, handed out and taken, and what was wrong about it.

    `violations` tells the first of many, `wrongs` counts them all.
    """

    disturbances: list[Disturbance] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    violations: list[str] = field(default_factory=list)
    wrongs: int = 0
    redeliveries: int = 0
    results: int = 0
    # Commands that ended `undeliverable` and that no device ever had: a claim that was counted and not answered.
    unreached: set[str] = field(default_factory=set)
    _commands: dict[str, _Command] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        """How many commands were answered 201."""
        return sum(command.answered for command in self._commands.values())

    def call(self, call: Call) -> None:
        """Judge a call by what was broken when it was made."""
        self.calls += 1
        if 200 <= call.status < 300:
            return
        self.outcomes[call.outcome] += 1
        if not self._is_excused(call):
            self.wrong(f"{call.kind} at {call.instance}: {call.outcome}{self._when(call)}")

    def _is_excused(self, call: Call) -> bool:
        if call.status == 401 and call.signed_in_at is not None:
            emptied = [found.emptied_at for found in self.disturbances if found.emptied_at is not None]
            return any(call.signed_in_at < moment for moment in emptied)
        if call.code == "IDEMPOTENCY_IN_PROGRESS":
            return call.attempt > 1 and call.retry_after
        if call.code == "ALREADY_DECIDED":
            # Decisions have no key: asked again after a lost answer, that is how the first is known to have counted.
            return call.attempt > 1
        if call.kind == "result" and call.code in OUTDATED:
            # Right when there is a newer claim, which is checked against the truth.
            return True
        if call.kind in ("extend", "release") and call.code in _LAPSED:
            return any(found.covers(call) for found in self.disturbances)
        return any(found.excuses(call) for found in self.disturbances)

    def _when(self, call: Call) -> str:
        if call.status == 503 and not call.retry_after:
            return " without Retry-After"
        last = self.disturbances[-1] if self.disturbances else None
        if last is None or last.healed is None:
            return ""
        return f", {call.started - last.healed:.1f} s after the end of {last.name}"

    def submitted(self, command_id: str, kind: str, key: str) -> None:
        """A submission with an Idempotency-Key was answered 201."""
        first = self._keys.setdefault(key, command_id)
        if first != command_id:
            self.wrong(f"one Idempotency-Key made two commands, {first} and {command_id}")
        self._command(command_id, kind).answered = True

    def reached(self, command_id: str, kind: str) -> None:
        """A device has a command, and may still leave it alone."""
        self._command(command_id, kind).reached = True

    def delivered(self, delivery: Delivery, until_ms: int) -> None:
        """A device has a command and runs it."""
        command = self._command(delivery.command_id, delivery.kind)
        command.reached = True
        which = f"{delivery.kind} {delivery.command_id}"
        if command.deliveries:
            self.redeliveries += 1
            if delivery.kind == "remediation":
                self.wrong(f"{which} was run twice")
        # An answer may be so late that the next claim's was there before it.
        overtaken = any(known.granted_ms > delivery.granted_ms for known in command.deliveries)
        if command.taken and not overtaken:
            self.wrong(f"{which} was delivered after its result had been taken")
        command.until_ms[delivery.token] = until_ms
        for known in command.deliveries:
            earlier, later = sorted((known, delivery), key=lambda one: one.granted_ms)
            ends = command.until_ms[earlier.token]
            if later.granted_ms < ends:
                self.wrong(f"{which} was granted anew {ends - later.granted_ms} ms before its lease ended")
        command.deliveries.append(delivery)

    def extended(self, command_id: str, token: str, until_ms: int) -> None:
        """An extension was answered: the lease ends later."""
        self._commands[command_id].until_ms[token] = until_ms

    def returned(self, command_id: str, token: str) -> None:
        """A device has handed a command back before it did anything."""
        command = self._commands[command_id]
        command.deliveries = [delivery for delivery in command.deliveries if delivery.token != token]

    def taken(self, command_id: str, result: Mapping[str, Any]) -> None:
        """A result was answered 200."""
        self.results += 1
        self._commands[command_id].taken.append(result)

    def refused(self, command_id: str, attempt: int) -> None:
        """A result was refused as that of an older claim."""
        self._commands[command_id].outdated.append(attempt)

    def judge(self, truth: Mapping[str, Stored], ids: Iterable[str] | None = None) -> None:
        """Compare the commands (all, or those in `ids`) with the truth; nothing may be under way."""
        for command_id in self._commands if ids is None else ids:
            stored, command = truth.get(command_id), self._commands[command_id]
            if stored is None:
                self.wrong(f"{command.kind} {command_id} was answered 201 and is lost")
            else:
                if stored.status == "undeliverable" and not command.reached:
                    self.unreached.add(command_id)
                for problem in _problems(command, stored):
                    self.wrong(f"{command.kind} {command_id} {problem}")
        for command_id in truth.keys() - {found for found, command in self._commands.items() if command.answered}:
            self.wrong(f"command {command_id} is there and was never answered 201: a submission was done twice")

    def _command(self, command_id: str, kind: str) -> _Command:
        """The command, which a device may have had before its submission was answered."""
        return self._commands.setdefault(command_id, _Command(kind))

    def wrong(self, what: str) -> None:
        """Note what must not be."""
        self.wrongs += 1
        if what not in self.violations and len(self.violations) < _MOST_TOLD:
            self.violations.append(what)


def _problems(command: _Command, stored: Stored) -> list[str]:
    """What does not fit between what clients saw of a command and what is kept of it."""
    found = [
        f"refused the result of claim {attempt}, after which there was none"
        for attempt in command.outdated
        if stored.attempt <= attempt
    ]
    if stored.status not in FINAL:
        found.append(f"never ended: it is {stored.status}")
    if stored.kind != command.kind:
        found.append(f"is kept as {stored.kind}")
    return found + _result_problems(command, stored)


def _result_problems(command: _Command, stored: Stored) -> list[str]:
    """The same for its result."""
    found = []
    distinct = {result["output"]: result for result in command.taken}
    if len(distinct) > 1:
        found.append(f"has {len(distinct)} different results that were taken")
    for result in distinct.values():
        if stored.status != ENDS[result["status"]] or stored.result is None:
            found.append(f"lost a result that was taken: it is {stored.status}")
        elif differs := [name for name, value in result.items() if stored.result.get(name) != value]:
            found.append(f"keeps another result than the one that was taken: {', '.join(differs)} differ")
    if stored.status in REPORTED:
        sent = {delivery.output for delivery in command.deliveries}
        if stored.result is None or stored.result.get("output") not in sent:
            found.append("has a result that no device sent")
        if not distinct:
            found.append("has a result whose device was never told that it was taken")
        if stored.ends != 1:
            found.append(f"has {stored.ends} records of its end")
    return found
