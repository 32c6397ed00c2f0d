"""How every client here calls: it is told apart by kind and instance in the ledger, and goes elsewhere when it must."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError

from tests.support.clients import Client, Reply

from .ledger import BROKEN, GAVE_UP, Call, Ledger
from .stage import Gateway

# Seconds between two tries of one call, and until a client takes a call for lost.
_PAUSE = (0.1, 0.4)
PATIENCE_S = 30.0


@dataclass(slots=True)
class Caller:
    """Calls gateways and records how that went. `home` is the one that is asked first."""

    ledger: Ledger
    gateways: Sequence[Gateway]
    home: int
    # When the device asked for the token that it now has; None for who needs none.
    signed_in_at: float | None = None
    _elsewhere: int = field(default=0)

    @property
    def gateway(self) -> Gateway:
        """The one that is asked next."""
        return self.gateways[(self.home + self._elsewhere) % len(self.gateways)]

    def go_home(self) -> None:
        """Ask the one at home again."""
        self._elsewhere = 0

    def leave(self, gateway: Gateway) -> None:
        """Ask another one than `gateway` from now on."""
        if self.gateway is gateway:
            self._elsewhere += 1

    async def once(
        self, kind: str, client: Client, method: str, path: str, body: Any = None, *, attempt: int = 1, **headers: str
    ) -> Reply | None:
        """One call at the present gateway; None when there was no answer. One that cannot serve is left."""
        loop, gateway = asyncio.get_running_loop(), self.gateway
        started, signed_in_at = loop.time(), self.signed_in_at
        reply, status = None, BROKEN
        dashed = {name.replace("_", "-"): value for name, value in headers.items()}
        at = Client(client.http, gateway.url, client.headers)
        try:
            async with asyncio.timeout(PATIENCE_S):
                reply = await at.call(method, path, body, headers=dashed)
            status = reply.status
        except TimeoutError:
            status = GAVE_UP
        except (ClientError, OSError):
            status = BROKEN
        self.ledger.call(
            Call(
                kind=kind,
                instance=gateway.name,
                started=started,
                ended=loop.time(),
                status=status,
                code=reply.code if reply else None,
                retry_after=reply is not None and _is_positive(reply.headers.get("Retry-After")),
                attempt=attempt,
                signed_in_at=signed_in_at,
            )
        )
        if status < 200 or status >= 500:
            self.leave(gateway)
        return reply

    async def until(
        self,
        kind: str,
        client: Client,
        method: str,
        path: str,
        body: Any = None,
        *,
        ends: Collection[int] = (200, 201, 403),
        **headers: str,
    ) -> Reply:
        """The same call again, here and elsewhere, until its status is one of `ends`; for ever if need be."""
        attempt = 0
        while True:
            attempt += 1
            reply = await self.once(kind, client, method, path, body, attempt=attempt, **headers)
            if reply is not None and reply.status in ends:
                return reply
            await pause()


async def pause() -> None:
    """What lies between two tries."""
    await asyncio.sleep(random.uniform(*_PAUSE))


def _is_positive(text: str | None) -> bool:
    return text is not None and text.isdigit() and int(text) > 0
