"""`aizen-gateway audit export`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import BinaryIO
from uuid import UUID

import click
import orjson

from ..domain.errors import GatewayError
from ..services.audit_export import export
from .operator import database


@click.group()
def audit() -> None:
    """The audit log."""


@audit.command("export")
@click.option("--customer", "customer_id", type=click.UUID, help="Of this customer alone.")
@click.option("--since", type=click.DateTime(), help="From this time (UTC).")
@click.option("--until", type=click.DateTime(), help="Before this time (UTC).")
@click.option("--output", type=click.File("wb"), default="-", help="A file instead of standard output.")
def export_audit(customer_id: UUID | None, since: datetime | None, until: datetime | None, output: BinaryIO) -> None:
    """Write audit records as JSON lines, oldest first."""

    async def work() -> None:
        async with database() as opened:
            async for record in export(opened, customer_id, _utc(since), _utc(until)):
                output.write(orjson.dumps(record) + b"\n")

    try:
        asyncio.run(work())
    except GatewayError as error:
        raise click.ClickException(f"{error.message} ({error.code})") from error


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None
