"""The faults: what each breaks, for how long, and what clients may see of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aizen_gateway.dev.embedded import EmbeddedServer
from tests.support.outages import hung, kill, shut_down

from .ledger import Disturbance, Ledger
from .stage import AHEAD_S, Stage

# Seconds that a killed gateway is away at most, and between two resets: some hit what has just been connected again.
_DEAD_S = 3.0
_RESET_AFTER_S = (0.02, 0.4)


@dataclass(slots=True)
class Scene:
    """Where a fault happens: `seconds` is how long it lasts, `turn` counts how often it has happened before."""

    stage: Stage
    ledger: Ledger
    seconds: float
    turn: int

    def begin(
        self,
        name: str,
        *,
        unavailable: frozenset[str] = frozenset(),
        broken: frozenset[str] = frozenset(),
        untouched: frozenset[str] = frozenset(),
    ) -> Disturbance:
        """Tell the ledger that something is about to break."""
        began = asyncio.get_running_loop().time()
        disturbance = Disturbance(name, began, unavailable, broken, untouched)
        self.ledger.disturbances.append(disturbance)
        return disturbance

    @staticmethod
    def heal(disturbance: Disturbance) -> Disturbance:
        """Tell the ledger that it is whole again."""
        disturbance.healed = asyncio.get_running_loop().time()
        return disturbance


Inject = Callable[[Scene], Awaitable[Disturbance]]


async def _kill_gateway(scene: Scene) -> Disturbance:
    victim = scene.stage.gateways[scene.turn % len(scene.stage.gateways)]
    disturbance = scene.begin("the death of a gateway", broken=frozenset({victim.name}))
    await victim.kill()
    await asyncio.sleep(min(scene.seconds, _DEAD_S))
    await victim.start()
    return scene.heal(disturbance)


async def _kill_valkey(scene: Scene) -> Disturbance:
    stage = scene.stage
    disturbance = scene.begin("the death of Valkey", unavailable=stage.names)
    await kill(stage.valkey)
    disturbance.emptied_at = asyncio.get_running_loop().time()
    await asyncio.sleep(scene.seconds)
    await stage.valkey.restart()
    return scene.heal(disturbance)


async def _hang_valkey(scene: Scene) -> Disturbance:
    disturbance = scene.begin("Valkey's silence", unavailable=scene.stage.names)
    with hung(scene.stage.valkey):
        await asyncio.sleep(scene.seconds)
    return scene.heal(disturbance)


async def _hang_postgres(scene: Scene) -> Disturbance:
    stage = scene.stage
    disturbance = scene.begin("PostgreSQL's silence", unavailable=stage.names, untouched=frozenset({"heartbeat"}))
    with hung(stage.postgres):
        await asyncio.sleep(scene.seconds)
    return scene.heal(disturbance)


async def _stop_postgres(scene: Scene) -> Disturbance:
    return await _without_postgres(scene, "the stop of PostgreSQL", shut_down)


async def _kill_postgres(scene: Scene) -> Disturbance:
    return await _without_postgres(scene, "the death of PostgreSQL", kill)


async def _without_postgres(scene: Scene, name: str, end: Callable[[EmbeddedServer], Awaitable[None]]) -> Disturbance:
    stage = scene.stage
    disturbance = scene.begin(name, unavailable=stage.names, untouched=frozenset({"heartbeat"}))
    await end(stage.postgres)
    await asyncio.sleep(scene.seconds)
    await stage.postgres.restart()
    return scene.heal(disturbance)


async def _reset_connections(scene: Scene) -> Disturbance:
    stage = scene.stage
    disturbance = scene.begin("the resets", unavailable=frozenset({stage.gateways[0].name}))
    loop = asyncio.get_running_loop()
    ends = loop.time() + scene.seconds
    while loop.time() < ends:
        for wire in random.choice(
            ((stage.postgres_wire,), (stage.valkey_wire,), (stage.postgres_wire, stage.valkey_wire))
        ):
            wire.reset()
        await asyncio.sleep(random.uniform(*_RESET_AFTER_S))
    return scene.heal(disturbance)


async def _cut_off(scene: Scene) -> Disturbance:
    """What was sent into the cut arrives afterwards in one turn, and the connections are forgotten in the next."""
    stage = scene.stage
    disturbance = scene.begin("the cut", unavailable=frozenset({stage.gateways[0].name}))
    stage.valkey_wire.block()
    try:
        await asyncio.sleep(scene.seconds)
    finally:
        stage.valkey_wire.unblock(forgotten=scene.turn % 2 == 1)
    return scene.heal(disturbance)


async def _clocks_apart(scene: Scene) -> Disturbance:
    """Nothing breaks at all; they are apart all the time."""
    disturbance = scene.begin("nothing")
    clocks = [await scene.stage.clock_of(gateway) for gateway in scene.stage.gateways]
    apart = max(clocks) - min(clocks)
    if abs(apart - AHEAD_S) > 60:
        scene.ledger.wrong(f"the clocks of the gateways are {apart:.0f} s apart, not an hour")
    await asyncio.sleep(scene.seconds)
    return scene.heal(disturbance)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by its name for `--faults`."""

    title: str
    inject: Inject
    needs_fake_clock: bool = False
    # Every claim that was committed is answered, so that every command reaches its device.
    reaches: bool = False


FAULTS: Mapping[str, Fault] = {
    "gateway-killed": Fault("a gateway is killed, and started again", _kill_gateway),
    "valkey-killed": Fault("Valkey is killed, and comes back empty", _kill_valkey, reaches=True),
    "valkey-hung": Fault("Valkey says nothing", _hang_valkey, reaches=True),
    "postgres-stopped": Fault("PostgreSQL is stopped in order", _stop_postgres),
    "postgres-killed": Fault("PostgreSQL is killed", _kill_postgres),
    "postgres-hung": Fault("PostgreSQL says nothing", _hang_postgres),
    "connections-reset": Fault("a gateway's connections are reset", _reset_connections),
    "cut-off": Fault("a gateway is cut off from Valkey alone", _cut_off, reaches=True),
    "clocks-apart": Fault("nothing but clocks an hour apart", _clocks_apart, needs_fake_clock=True, reaches=True),
}
