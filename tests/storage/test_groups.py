"""Work that callers of the same moment share: what is wrong with one of them is no harm to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from aizen_gateway.domain.errors import InDoubt, Unavailable
from aizen_gateway.storage.groups import Groups


class Work:
    """Doubles numbers. It begins when it may, and fails as it is told to."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.groups: list[int] = []
        self.may_begin = asyncio.Event()
        self.failure: BaseException | None = None

    async def __call__(self, group: Sequence[int]) -> Sequence[int | None]:
        await self.may_begin.wait()
        if self.failure is not None:
            raise self.failure
        self.done.extend(group)
        self.groups.append(len(group))
        return [2 * number for number in group]


async def test_each_of_many_gets_its_own_result() -> None:
    work = Work()
    work.may_begin.set()
    groups = Groups(work)
    assert await asyncio.gather(*map(groups.do, range(1_000))) == [2 * number for number in range(1_000)]
    assert work.done == [*range(1_000)]
    await groups.close()


async def test_a_failure_that_may_be_that_of_one_has_each_done_alone() -> None:
    work = Work()
    work.failure = ValueError("one of you")
    work.may_begin.set()
    groups = Groups(work)
    assert await asyncio.gather(*map(groups.do, range(3))) == [None, None, None]
    await groups.close()


async def test_an_outage_is_told_to_all() -> None:
    work = Work()
    work.failure = Unavailable("away")
    work.may_begin.set()
    groups = Groups(work)
    outcomes = await asyncio.gather(*map(groups.do, range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    await groups.close()


async def test_nothing_is_done_for_a_caller_that_gave_up_before_its_turn() -> None:
    work = Work()
    groups = Groups(work)
    # Two groups run, and the others wait for one of them to end.
    first = asyncio.create_task(groups.do(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(groups.do(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gave_up, stays = asyncio.create_task(groups.do(3)), asyncio.create_task(groups.do(4))
    await asyncio.sleep(0)
    gave_up.cancel()
    await asyncio.wait((gave_up,))
    work.may_begin.set()
    assert [await first, await second, await stays] == [2, 4, 8]
    assert work.done == [1, 2, 4]
    await groups.close()


async def test_closing_lets_those_that_wait_have_their_turn() -> None:
    work = Work()
    groups = Groups(work)
    callers = [asyncio.create_task(groups.do(number)) for number in range(300)]
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, work.may_begin.set)
    await groups.close()
    assert await asyncio.gather(*callers) == [2 * number for number in range(300)]


async def test_what_does_not_end_is_broken_off_and_its_callers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aizen_gateway.storage.groups._LAST_S", 0.1)
    groups = Groups(Work())
    callers = [asyncio.create_task(groups.do(number)) for number in range(300)]
    await asyncio.sleep(0)
    await groups.close()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    # Of those whose turn had come nobody knows.
    assert {type(outcome) for outcome in outcomes} == {Unavailable, InDoubt}
    with pytest.raises(Unavailable):
        await groups.do(1)


async def test_groups_that_are_to_be_apart_take_up_who_comes_meanwhile() -> None:
    work = Work()
    work.may_begin.set()
    groups = Groups(work, apart_s=0.2)
    assert await groups.do(1) == 2
    waiting = [asyncio.create_task(groups.do(number)) for number in range(2, 5)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert work.done == [1]
    assert await asyncio.gather(*waiting) == [4, 6, 8]
    assert work.groups == [1, 3]
    await groups.close()


async def test_closing_waits_for_no_pause_between_groups() -> None:
    work = Work()
    work.may_begin.set()
    groups = Groups(work, apart_s=60.0)
    assert await groups.do(1) == 2
    waiting = [asyncio.create_task(groups.do(number)) for number in range(2, 200)]
    await asyncio.sleep(0)
    await groups.close()
    assert await asyncio.gather(*waiting) == [2 * number for number in range(2, 200)]
