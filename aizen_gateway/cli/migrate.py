"""`aizen-gateway migrate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..storage.migrate import migrate as apply_schema
from .output import as_json, run, variable


@click.command()
@as_json
def migrate(as_json: bool) -> None:
    """Bring the database of DATABASE_URL to the newest schema."""

    async def work() -> Mapping[str, Any]:
        applied = await apply_schema(variable("DATABASE_URL"))
        return {"applied": applied} if as_json or applied else {"schema": "is up to date"}

    run(work, as_json=as_json)
