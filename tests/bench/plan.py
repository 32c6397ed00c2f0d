"""How much is measured: everything that a run of the bench can have more or less of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. Times are seconds; `frames` is frames a second in all, `submits` commands a second.

    `gone` is how long devices are away when all that follows from it has been done.
    """

    seconds: float = 5.0
    runs: int = 3
    warm_up: float = 0.5
    concurrency: tuple[int, ...] = (1, 16, 64)
    polls: int = 5_000
    submits: int = 250
    quiet: float = 5.0
    handshakes: int = 2_000
    idle: tuple[int, ...] = (1_000, 5_000, 10_000)
    settle: float = 2.0
    gone: float = 4.5
    portals: int = 1_000
    frames: int = 30_000
    listening: float = 40.0
    audience: int = 5_000
    broadcasts: int = 10
    devices: tuple[int, ...] = (1_000, 10_000, 100_000)
    commands: tuple[int, ...] = (100_000, 1_000_000)


QUICK = Plan(
    seconds=0.5,
    runs=1,
    warm_up=0.1,
    concurrency=(1, 16),
    polls=100,
    submits=100,
    quiet=0.5,
    handshakes=100,
    idle=(50, 100),
    settle=0.2,
    gone=0.2,
    portals=100,
    frames=3_000,
    listening=1.0,
    audience=200,
    broadcasts=2,
    devices=(2_000,),
    commands=(5_000,),
)
