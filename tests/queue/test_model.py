"""The queue against a simple model of its promises (contract section 3), in two ways.

`QueueMachine` drives two real instances on a real PostgreSQL and Valkey through anything that can happen to commands.
Time is real there, and leases last a millisecond or for ever. `ClockMachine` drives the rules alone, with a clock of
its own, so that it meets every order of deadlines.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aizen_gateway.domain.clock import EPOCH
from aizen_gateway.domain.errors import (
    ClaimExpired,
    CommandAlreadyCompleted,
    CommandCanceled,
    GatewayError,
    InvalidClaimToken,
)
from aizen_gateway.domain.lifecycle import HELD, due_at, is_final, lapse, lapsed, moved
from aizen_gateway.domain.records import Command
from aizen_gateway.domain.reporting import Report, require_lease, take_result
from aizen_gateway.domain.values import CommandStatus, ResultStatus
from tests.support import records
from tests.support.bench import Bench, BenchDevice

T = TypeVar("T")
S = CommandStatus

# Milliseconds. A lease that is over as soon as it is looked at, and one that outlasts any test.
SHORT, LONG = 1, 300_000
FROM_RESULT = {
    ResultStatus.SUCCESS: S.SUCCEEDED,
    ResultStatus.FAILURE: S.FAILED,
    ResultStatus.TIMEOUT: S.TIMED_OUT,
    ResultStatus.CANCELED: S.CANCELED,
}
OPEN = (S.PENDING_APPROVAL, S.QUEUED, S.CLAIMED, S.CANCEL_REQUESTED)

results = st.sampled_from(ResultStatus)
tokens = st.sampled_from(["latest", "latest", "latest", "older", "wrong"])
instances = st.sampled_from([0, 1])


@dataclass(frozen=True, slots=True)
class Order:
    """A command to be submitted: `hasty` ones may run for a millisecond, `stale` ones expire before a claim."""

    type: str
    priority: int
    deliveries: int | None
    hasty: bool
    stale: bool


# Few priorities, so that many commands share one; few deliveries, so that they are soon used up.
orders = st.builds(
    Order,
    type=st.sampled_from(["ping", "ping", "ping", "restart_dhcp"]),
    priority=st.sampled_from([5, 1, 10]),
    deliveries=st.sampled_from([1, 2, None]),
    hasty=st.sampled_from([False, False, False, True]),
    stale=st.sampled_from([False, False, False, False, True]),
)


@dataclass(slots=True)
class Modelled:
    """What the promises say of one command."""

    view: Any
    place: int
    max_deliveries: int
    # Its execution may take a millisecond only.
    hasty: bool = False
    # Nobody may claim it any more.
    stale: bool = False
    status: S = S.QUEUED
    attempt: int = 0
    tokens: list[str] = field(default_factory=list)
    # The latest claim may still be answered.
    answerable: bool = False
    lease_over: bool = False
    time_over: bool = False
    presumed: bool = False
    result: tuple[ResultStatus, str] | None = None
    late: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.view["priority"], self.place

    @property
    def claimable(self) -> bool:
        lapsed = self.status is S.CLAIMED and self.lease_over and not self.time_over
        return (self.status is S.QUEUED or lapsed) and not self.stale and self.attempt < self.max_deliveries

    def claim(self, token: str, lease_ms: int) -> None:
        assert token not in self.tokens
        self.status, self.answerable = S.CLAIMED, True
        self.attempt += 1
        self.tokens.append(token)
        self.lease_over = lease_ms == SHORT
        # A lease that ends with the time for execution gives the command back.
        self.time_over = self.hasty and lease_ms == LONG

    def conclude(self) -> None:
        """What time has done by now."""
        if self.status in (S.PENDING_APPROVAL, S.QUEUED) and self.stale:
            self.status = S.EXPIRED
        elif self.status in (S.CLAIMED, S.CANCEL_REQUESTED) and self.time_over:
            self.status, self.presumed = S.TIMED_OUT, True
        elif self.status is S.CANCEL_REQUESTED and self.lease_over:
            self.status = S.CANCELED
        elif self.status is S.CLAIMED and self.lease_over:
            self.presumed = self.attempt >= self.max_deliveries
            self.status = S.UNDELIVERABLE if self.presumed else S.QUEUED

    @property
    def ended(self) -> type[GatewayError]:
        return CommandCanceled if self.status is S.CANCELED else CommandAlreadyCompleted

    def holding(self, token: str) -> type[GatewayError] | None:
        """Why `token` does not hold the command, None when it does."""
        if self.status not in OPEN:
            return self.ended
        if not self.answerable or token != self.tokens[-1]:
            return InvalidClaimToken
        if self.status is S.QUEUED or self.lease_over:
            return ClaimExpired
        return CommandAlreadyCompleted if self.time_over else None

    def report(self, token: str, result: tuple[ResultStatus, str]) -> type[GatewayError] | tuple[bool, bool]:
        """Take a result; why it is refused, or whether it is a duplicate and whether it is late."""
        latest = self.answerable and token == self.tokens[-1]
        if self.status not in OPEN:
            if latest and self.result == result:
                return True, self.late
            if not (latest and self.presumed):
                return self.ended
            self.late = True
        elif not latest:
            return InvalidClaimToken
        else:
            self.late = self.status is S.QUEUED or self.lease_over or self.time_over
        self.status, self.result, self.presumed = FROM_RESULT[result[0]], result, False
        return False, self.late


class QueueMachine(RuleBasedStateMachine):
    """Two instances, one device. `runner` and `benches` are the test's."""

    runner: ClassVar[asyncio.Runner]
    benches: ClassVar[list[Bench]]
    numbers = itertools.count(1)

    commands = Bundle("commands")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        name = f"router-{next(self.numbers)}"
        self.device = self.run(self.benches[0].device(name))
        self.session = self.run(self.benches[0].open_session(name))
        self.known: list[Modelled] = []
        self.tokens: set[str] = set()
        self.places = itertools.count()

    def at(self, instance: int) -> BenchDevice:
        return replace(self.device, bench=self.benches[instance])

    @rule(target=commands, orders=st.lists(orders, min_size=1, max_size=4), instance=instances)
    def submit(self, orders: list[Order], instance: int) -> MultipleResults[Modelled]:
        made = [self.submitted(order, self.benches[instance]) for order in orders]
        self.known += made
        return multiple(*made)

    def submitted(self, order: Order, bench: Bench) -> Modelled:
        view = self.run(
            bench.submit(
                self.session,
                order.type,
                priority=order.priority,
                max_deliveries=order.deliveries,
                timeout_ms=SHORT if order.hasty else LONG,
                expires_in_ms=SHORT if order.stale else None,
            )
        )
        if order.stale:
            self.run(bench.passes(view["expiresAt"]))
        diagnostic = order.type == "ping"
        made = Modelled(view, next(self.places), order.deliveries or (5 if diagnostic else 1), order.hasty, order.stale)
        made.status = S.QUEUED if diagnostic else S.PENDING_APPROVAL
        return made

    @rule(command=commands, instance=instances)
    def approve(self, command: Modelled, instance: int) -> None:
        if command.status is S.PENDING_APPROVAL and not command.stale:
            self.run(self.benches[instance].approve(command.view))
            command.status, command.place = S.QUEUED, next(self.places)

    @rule(limit=st.sampled_from([1, 2, 3, 10]), lease_ms=st.sampled_from([SHORT, LONG]), instance=instances)
    def claim(self, limit: int, lease_ms: int, instance: int) -> None:
        claimed = self.run(self.at(instance).claim(limit=limit, visibility_ms=lease_ms))
        expected = sorted((command for command in self.known if command.claimable), key=lambda found: found.order)
        assert [found["id"] for found in claimed] == [command.view["id"] for command in expected[:limit]]
        for command, found in zip(expected, claimed, strict=False):
            assert found["attempt"] == command.attempt + 1
            assert found["claimToken"] not in self.tokens
            self.tokens.add(found["claimToken"])
            command.claim(found["claimToken"], lease_ms)
        if claimed:
            self.run(self.benches[0].passes(claimed[-1]["timestamp"], SHORT))

    def token_of(self, command: Modelled, which: str) -> str:
        if which == "wrong" or not command.tokens:
            return "wrong"
        return command.tokens[-1] if which == "latest" else command.tokens[0]

    def with_token(self, command: Modelled, which: str) -> Any:
        return {"id": command.view["id"], "claimToken": self.token_of(command, which)}

    @rule(command=commands, which=tokens, status=results, output=st.sampled_from("ab"), instance=instances)
    def report(self, command: Modelled, which: str, status: ResultStatus, output: str, instance: int) -> None:
        expected = command.report(self.token_of(command, which), (status, output))
        work = self.at(instance).report(self.with_token(command, which), status, output)
        if isinstance(expected, type):
            with pytest.raises(expected):
                self.run(work)
        else:
            answer = self.run(work)
            assert (answer["duplicate"], answer["late"]) == expected
            assert answer["status"] == command.status
            if "nextCommand" in answer:
                following = {found.view["id"] for found in self.known if found.claimable}
                assert answer["nextCommand"]["id"] in following

    @rule(command=commands, status=results, instance=instances)
    def answer(self, command: Modelled, status: ResultStatus, instance: int) -> None:
        """A device that answers what it was given, perhaps too late, perhaps again."""
        self.report(command, "latest", status, "a", instance)

    @rule(command=commands, which=tokens, lease_ms=st.sampled_from([SHORT, LONG]), instance=instances)
    def extend(self, command: Modelled, which: str, lease_ms: int, instance: int) -> None:
        refusal = command.holding(self.token_of(command, which))
        work = self.at(instance).extend(self.with_token(command, which), lease_ms)
        if refusal is not None:
            with pytest.raises(refusal):
                self.run(work)
            return
        answer = self.run(work)
        assert answer.get("cancelRequested", False) == (command.status is S.CANCEL_REQUESTED)
        command.lease_over = lease_ms == SHORT
        if command.lease_over:
            self.run(self.benches[0].passes(answer["visibleUntil"]))

    @rule(command=commands, which=tokens, instance=instances)
    def release(self, command: Modelled, which: str, instance: int) -> None:
        refusal = command.holding(self.token_of(command, which))
        work = self.at(instance).release(self.with_token(command, which))
        if refusal is not None:
            with pytest.raises(refusal):
                self.run(work)
            return
        self.run(work)
        if command.status is S.CANCEL_REQUESTED:
            command.status = S.CANCELED
        else:
            command.status, command.answerable = S.QUEUED, False
            command.attempt -= 1

    @rule(command=commands, force=st.booleans(), instance=instances)
    def cancel(self, command: Modelled, force: bool, instance: int) -> None:
        command.conclude()
        work = self.benches[instance].cancel(command.view, force=force)
        if command.status not in OPEN:
            with pytest.raises(CommandAlreadyCompleted):
                self.run(work)
            return
        held = command.status in (S.CLAIMED, S.CANCEL_REQUESTED)
        command.status = S.CANCEL_REQUESTED if held and not force else S.CANCELED
        assert self.run(work)["status"] == command.status

    @rule(command=consumes(commands))
    def forget(self, command: Modelled) -> None:
        """Nothing more is done to it, but it goes on being checked."""

    @rule(instance=instances)
    def sweep(self, instance: int) -> None:
        self.run(self.benches[instance].parts.sweep.commands())
        for command in self.known:
            command.conclude()

    @rule(instance=instances)
    def fill_the_index(self, instance: int) -> None:
        self.run(self.benches[instance].parts.recovery.fill())

    @rule(instance=instances)
    def lose_redis(self, instance: int) -> None:
        self.run(self.lost(instance))

    async def lost(self, instance: int) -> None:
        await self.benches[0].parts.store.call("FLUSHALL")
        assert await self.benches[instance].parts.recovery.look()
        await self.device.sign_in()

    @precondition(lambda self: self.known)
    @invariant()
    def the_truth_is_as_modelled(self) -> None:
        seen = self.run(self.seen())
        for command in self.known:
            view = seen[command.view["id"]]
            assert (view["status"], view["attempt"]) == (command.status, command.attempt)
            result = view.get("result")
            told = (ResultStatus(result["status"]), result["output"]) if result else None
            assert told == command.result
            assert not result or result["late"] == command.late

    async def seen(self) -> dict[str, Any]:
        bench = self.benches[0]
        answer = await bench.services.sessions.get(await bench.owner(), self.session)
        return {view["id"]: view for view in answer["session"]["commands"]}

    def teardown(self) -> None:
        """Whatever happened, what may be claimed comes, in order."""
        if hasattr(self, "known"):
            self.claim(10, LONG, 1)
            self.the_truth_is_as_modelled()


# What fails is made small first, which takes minutes.
@pytest.mark.timeout(600)
def test_the_queue_keeps_its_promises_whatever_happens(database_url: str, redis_url: str) -> None:
    with asyncio.Runner() as runner:
        first = runner.run(Bench.open(database_url, redis_url, AIZEN_RATE_LIMIT_DEVICE="0"))
        second = runner.run(Bench.open(database_url, redis_url, first.customer_id, AIZEN_RATE_LIMIT_DEVICE="0"))
        QueueMachine.runner, QueueMachine.benches = runner, [first, second]
        try:
            run_state_machine_as_test(
                QueueMachine,
                settings=settings(
                    max_examples=15,
                    stateful_step_count=30,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(first.close())
            runner.run(second.close())


def new_command(max_deliveries: int, timeout_ms: int, claim_by: datetime) -> Command:
    """A command that has just been queued at the epoch."""
    unclaimed: dict[str, Any] = dict.fromkeys(("claim_token", "claimed_at", "visible_until", "deadline_at"))
    made = records.command(
        attempt=0, max_deliveries=max_deliveries, timeout_ms=timeout_ms, claim_by=claim_by, **unclaimed
    )
    return replace(made, due_at=due_at(made))


def ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


moments = st.integers(1, 40)


class ClockMachine(RuleBasedStateMachine):
    """One command, and a clock that goes on by whole milliseconds."""

    @initialize(deliveries=st.sampled_from([1, 1, 2, 3]), timeout=moments, claim_by=st.integers(1, 120))
    def begin(self, deliveries: int, timeout: int, claim_by: int) -> None:
        self.now = EPOCH
        self.command = new_command(deliveries, timeout, EPOCH + ms(claim_by))
        self.claims = 0
        self.replaced = 0
        self.final: S | None = None

    def save(self, after: Command, *, replaces: bool = False) -> None:
        """What storage does, with what every change must keep to."""
        if is_final(self.command.status):
            assert replaces
            assert self.command.status in (S.UNDELIVERABLE, S.TIMED_OUT)
            assert self.command.presumed
            self.replaced += 1
        assert 0 <= after.attempt <= after.max_deliveries
        assert after.due_at == due_at(after)
        assert (after.completed_at is not None) == is_final(after.status)
        self.command = after

    @rule(milliseconds=moments)
    def time_passes(self, milliseconds: int) -> None:
        self.now += ms(milliseconds)

    @rule(lease=moments)
    def claim(self, lease: int) -> None:
        """As `confirm_claims` does: after what time has done, and only what is queued."""
        self.sweep()
        if self.command.status is not S.QUEUED:
            return
        assert self.now < self.command.claim_by
        assert self.command.attempt < self.command.max_deliveries
        self.claims += 1
        after = moved(
            self.command,
            S.CLAIMED,
            attempt=self.command.attempt + 1,
            claim_token=f"token {self.claims}",
            claimed_at=self.now,
            visible_until=self.now + ms(lease),
            deadline_at=self.now + ms(self.command.timeout_ms),
        )
        self.save(after)

    @rule()
    def sweep(self) -> None:
        change = lapse(self.command, self.now)
        assert (change is None) == (self.command.due_at is None or self.now < self.command.due_at)
        if change is None:
            return
        before = self.command
        self.save(lapsed(before, change, self.now))
        if change.status is S.QUEUED:
            assert before.attempt < before.max_deliveries
        if change.status is S.UNDELIVERABLE:
            assert before.attempt == before.max_deliveries
        if before.status is S.CANCEL_REQUESTED:
            assert change.status in (S.CANCELED, S.TIMED_OUT)
        assert change.event

    @rule(lease=moments)
    def extend(self, lease: int) -> None:
        if self.holds():
            after = replace(self.command, visible_until=self.now + ms(lease))
            self.save(replace(after, due_at=due_at(after)))

    @rule()
    def release(self) -> None:
        if self.holds():
            if self.command.status is S.CANCEL_REQUESTED:
                self.save(moved(self.command, S.CANCELED, completed_at=self.now))
            else:
                gone: dict[str, Any] = {"claim_token": None, "visible_until": None, "deadline_at": None}
                self.save(moved(self.command, S.QUEUED, attempt=self.command.attempt - 1, **gone))

    def holds(self) -> bool:
        """Whether the latest claim holds the command; and `require_lease` says the same."""
        command, token = self.command, f"token {self.claims}"
        held = (
            command.status in HELD
            and command.visible_until is not None
            and command.deadline_at is not None
            and self.now < min(command.visible_until, command.deadline_at)
        )
        if held:
            require_lease(command, token, self.now)
            with pytest.raises(InvalidClaimToken):
                require_lease(command, "another", self.now)
        else:
            with pytest.raises((InvalidClaimToken, ClaimExpired, CommandAlreadyCompleted, CommandCanceled)):
                require_lease(command, token, self.now)
        return held

    @rule(force=st.booleans())
    def cancel(self, force: bool) -> None:
        self.sweep()
        if is_final(self.command.status) or (self.command.status is S.CANCEL_REQUESTED and not force):
            return
        if self.command.status is S.CLAIMED and not force:
            self.save(moved(self.command, S.CANCEL_REQUESTED))
        else:
            self.save(moved(self.command, S.CANCELED, completed_at=self.now))

    @rule(status=results, output=st.sampled_from("ab"), older=st.booleans())
    def report(self, status: ResultStatus, output: str, older: bool) -> None:
        before = self.command
        token = f"token {self.claims - older}"
        told = Report(status, output, None, None, EPOCH, 1)
        try:
            verdict = take_result(before, token, told, self.now)
        except InvalidClaimToken:
            assert not is_final(before.status)
            assert before.claim_token != token
            return
        except (CommandAlreadyCompleted, CommandCanceled):
            assert is_final(before.status)
            assert before.claim_token != token or not before.presumed
            return
        assert before.claim_token == token
        if verdict.after is None:
            assert before.result_digest == told.digest()
            return
        assert verdict.after.status is FROM_RESULT[status]
        assert verdict.after.result is not None
        assert verdict.after.result["late"] == verdict.late
        live = not is_final(before.status) and before.status in HELD and before.due_at is not None
        assert verdict.late != (live and before.due_at is not None and self.now < before.due_at)
        self.save(verdict.after, replaces=True)
        self.final = verdict.after.status

    @invariant()
    def what_the_device_said_is_never_changed(self) -> None:
        if getattr(self, "final", None) is not None:
            assert self.command.status is self.final
            assert self.replaced <= 1
            again = self.command.result_digest
            assert again is not None

    @invariant()
    def time_alone_changes_it_at_its_due_moment_and_not_before(self) -> None:
        command = getattr(self, "command", None)
        if command is None:
            return
        if is_final(command.status):
            assert command.due_at is None
            assert lapse(command, self.now + timedelta(days=365)) is None
        else:
            assert command.due_at is not None
            assert lapse(command, command.due_at - ms(1)) is None
            assert lapse(command, command.due_at) is not None


@pytest.mark.timeout(600)
def test_the_rules_keep_the_promises_at_any_moment() -> None:
    run_state_machine_as_test(
        ClockMachine,
        settings=settings(
            max_examples=200,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
