"""What must not cost more: many registered devices, and many finished commands."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aizen_gateway.storage.queue import Queue

from .cost import Place, measured, row_of
from .filling import finish, keep_waiting, register
from .outcome import Figures, Row, medians
from .plan import Plan
from .stage import Stage

_CONNECTIONS = 16


async def measure(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """Rows of the cost a command: with more and more devices, then with a longer and longer history too.

    Each beside that of a gateway where there is next to nothing, by turns: no machine is as fast now as a minute ago.
    `stage` must be new: what others have left in it would be counted as well.
    """
    queue = Queue(stage.store, stage.sessions)
    async with (
        stage.another() as other,
        Place.built(stage, plan, await stage.devices("scale", _CONNECTIONS)) as much,
        Place.built(other, plan, await other.devices("scale", _CONNECTIONS)) as little,
    ):

        async def row(path: str, title: str, load: str, amount: float) -> Row:
            found: list[Figures] = []
            beside: list[Figures] = []
            for _ in range(plan.runs):
                beside.append(await measured(plan, [little]))
                found.append(await measured(plan, [much]))
            return row_of(path, title, load, amount, medians(found), medians(beside))

        path, title = "scale-devices", "cost with devices registered"
        yield await row(path, title, f"{_CONNECTIONS} devices", _CONNECTIONS)
        registered = 0
        for count in plan.devices:
            async with stage.database() as database:
                await register(database, stage.valkey, stage.customer_id, registered, count)
                await keep_waiting(database, queue, stage.customer_id, registered, count)
            registered = count
            yield await row(path, title, f"{count} devices", count)
        path, title, finished = "scale-history", "cost with finished commands", 0
        for count in plan.commands:
            async with stage.database() as database:
                await finish(database, stage.customer_id, [device.id for device in much.devices], finished, count)
            finished = count
            yield await row(path, title, f"{count} commands", count)
