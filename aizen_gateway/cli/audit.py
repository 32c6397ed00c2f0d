"""`aizen-gateway audit export`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import BinaryIO
from uuid import UUID

import click
import orjson

from ..services.audit_export import export
from .operator import database
from .output import explained


@click.group()
def audit() -> None:
    """The audit log."""


# Times as the records themselves have them, too, so that an export goes on where another ended.
_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"])


@audit.command("export")
@click.option("--customer", "customer_id", type=click.UUID, help="Of this customer alone.")
@click.option("--since", type=_MOMENT, help="From this time on (UTC).")
@click.option("--until", type=_MOMENT, help="Before this time (UTC).")
@click.option("--output", type=click.File("wb"), default="-", help="A file instead of standard output.")
def export_audit(customer_id: UUID | None, since: datetime | None, until: datetime | None, output: BinaryIO) -> None:
    """Write audit records as JSON lines, oldest first."""

    async def work() -> None:
        async with database() as opened:
            async for record in export(opened, customer_id, _utc(since), _utc(until)):
                output.write(orjson.dumps(record) + b"\n")

    with explained():
        asyncio.run(work())


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None
