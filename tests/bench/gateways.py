"""A second gateway must not make a command dearer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from .cost import FLAT, Place, measured, row_of
from .outcome import Check, Figure, Figures, Row, medians
from .plan import Plan
from .stage import Stage

# So many devices keep two gateways busy, and so many leave one time for a pause.
_CROWD, _FEW = 128, 16
# Of what one gateway can do: where each command comes alone, and where the processes are neither idle nor full.
_LITTLE, _HALF = 0.2, 0.5


async def measure(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """Rows of the cost a command: one gateway and two, at the same load in all.

    Two more tell where a difference comes from. One gateway with half of the load: with less to do at a time less is
    done together. Two gateways that share nothing but the core: each has the other's things in its caches.
    Twice at a part of what one gateway can do, and once with as many devices as keep it busy all the time.
    """
    async with stage.another() as other:
        crowd, strangers = await stage.devices("spread", _CROWD), await other.devices("spread", _CROWD)
        async with (
            Place.built(stage, plan, crowd[:_FEW], "one") as one,
            Place.built(stage, plan, crowd[:_FEW], "two") as two,
            Place.built(other, plan, strangers[:_FEW], "stranger") as stranger,
        ):
            full = (await measured(plan, [one]))[Figure.RATE]
            for path, title, count, rate in (
                ("scale-light-gateways", "cost with gateways, a fifth of the load", _FEW, full * _LITTLE),
                ("scale-gateways", "cost with gateways, half of the load", _FEW, full * _HALF),
                ("scale-full-gateways", "cost with gateways, all that they can do", _CROWD, 0.0),
            ):
                some, rest = one.with_devices(crowd[:count:2]), two.with_devices(crowd[1:count:2])
                apart = stranger.with_devices(strangers[:count:2])
                alone: list[Figures] = []
                half: list[Figures] = []
                nothing: list[Figures] = []
                both: list[Figures] = []
                for _ in range(plan.runs):
                    alone.append(await measured(plan, [one.with_devices(crowd[:count])], rate))
                    half.append(await measured(plan, [some], rate / 2))
                    nothing.append(await measured(plan, [some, apart], rate))
                    both.append(await measured(plan, [some, rest], rate))
                base, strange = medians(alone), medians(nothing)
                yield row_of(path, title, "1 gateway", 1, base)
                yield row_of(path, title, "half of it, 1 gateway", 0.5, medians(half))
                yield row_of(path, title, "nothing shared, 2 gateways", 0.5, strange)
                row = row_of(path, title, "2 gateways", 2, medians(both), base)
                beside = row.gateway[Figure.CPU] / strange[Figure.CPU]
                yield replace(row, checks=(*row.checks, Check("x that of two that share nothing", beside, FLAT)))
