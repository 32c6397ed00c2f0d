"""Timers that share those of the event loop: late by a moment at most, never early, and nothing left of them."""

from __future__ import annotations

import asyncio
import weakref

from aizen_gateway.realtime.later import Appointment, Later


class Party:
    """Somebody who is called back."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.news = asyncio.Event()

    def call(self, what: str) -> None:
        self.called.append(what)
        self.news.set()


async def test_what_is_due_is_done_in_order_and_never_early() -> None:
    later, party, loop = Later(), Party(), asyncio.get_running_loop()
    began = loop.time()
    later.call_later(0.3, party.call, "second")
    later.call_later(0.1, party.call, "first")
    for count, delay in ((1, 0.1), (2, 0.3)):
        async with asyncio.timeout(5):
            await party.news.wait()
        party.news.clear()
        assert len(party.called) == count
        assert loop.time() - began >= delay
    assert party.called == ["first", "second"]


async def test_what_was_cancelled_is_not_done_and_keeps_nobody_alive() -> None:
    later, party, gone = Later(), Party(), Party()
    known = weakref.ref(gone)
    # One in the same moment, and one alone.
    appointments = [later.call_later(delay, gone.call, "gone") for delay in (0.1, 3600.0)]
    later.call_later(0.1, party.call, "here")
    for appointment in appointments:
        appointment.cancel()
    del gone
    async with asyncio.timeout(5):
        await party.news.wait()
    assert party.called == ["here"]
    assert known() is None


async def test_one_cancelled_by_another_of_the_same_moment_is_not_done() -> None:
    later, party = Later(), Party()
    appointments: list[Appointment] = []

    def only_me(number: int) -> None:
        party.call(str(number))
        for appointment in appointments:
            appointment.cancel()

    appointments += [later.call_later(0.0, only_me, number) for number in range(3)]
    async with asyncio.timeout(5):
        await party.news.wait()
    await asyncio.sleep(0)
    assert len(party.called) == 1


async def test_one_that_fails_costs_the_others_nothing() -> None:
    later, party, loop = Later(), Party(), asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    later.call_later(0.0, lambda: 1 // 0)
    later.call_later(0.0, party.call, "well")
    async with asyncio.timeout(5):
        await party.news.wait()
    assert party.called == ["well"]
    await asyncio.sleep(0)
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
