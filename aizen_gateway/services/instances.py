"""Instances watch each other: the devices of one that died go offline, and one that was thought dead says it is not."""

from __future__ import annotations

import asyncio
import time

import structlog

from ..domain.errors import Unavailable
from ..storage.presence import Presence
from .device_sockets import DeviceSockets

_BEAT_EVERY_S = 0.5
# Dead after this; with the look that follows, the devices are offline within the contract's 5 s.
DEAD_AFTER_MS = 2_500
# An instance that could not speak itself until now cannot tell whether others are dead.
_SURE_AFTER_S = 3.0
_BURIED_AT_ONCE = 50
_LEAVES_WITHIN_S = 0.9

_log = structlog.get_logger(__name__)


class Instances:
    """This instance among the others."""

    def __init__(self, presence: Presence, sockets: DeviceSockets) -> None:
        self._presence = presence
        self._sockets = sockets
        self._speaking_since: float | None = None
        self._spoke_before = False

    async def beat(self) -> None:
        """Say that this instance lives, and take over what dead ones left. Raises `Unavailable`."""
        try:
            known, dead = await self._presence.instance_beat(DEAD_AFTER_MS)
        except Unavailable:
            self._speaking_since = None
            raise
        now = time.monotonic()
        if self._speaking_since is None:
            self._speaking_since = now
        if not known and self._spoke_before:
            _log.warning("this instance was forgotten", sockets=len(self._sockets.open_sockets))
            self._sockets.reassert()
        self._spoke_before = True
        await self._sockets.finish_leaving(_BEAT_EVERY_S)
        if now - self._speaking_since >= _SURE_AFTER_S:
            for instance in dead:
                await self._bury(instance, now + _BEAT_EVERY_S)

    async def _bury(self, instance: str, until: float) -> None:
        """End what a dead instance left, a part at a time: this one must go on saying that it lives itself."""
        count = 0
        while ended := await self._presence.bury(instance, _BURIED_AT_ONCE):
            count += ended
            if time.monotonic() >= until:
                break
        _log.warning("instance is gone", instance=instance, sockets=count, whole=not ended)

    async def run(self) -> None:
        """Beat for ever; owned by the application."""
        while True:
            started = time.monotonic()
            try:
                await self.beat()
            except Unavailable as error:
                _log.warning("instance beat waits", reason=error.message)
            await asyncio.sleep(max(0.0, started + _BEAT_EVERY_S - time.monotonic()))

    async def leave(self) -> None:
        """This instance goes away in order: nobody need look for it, unless its sockets' ends cannot be told.

        Raises `Unavailable`.
        """
        await self._sockets.left(_LEAVES_WITHIN_S)
        if await self._sockets.finish_leaving(_LEAVES_WITHIN_S):
            await self._presence.instance_leaves()
