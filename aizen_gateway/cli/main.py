"""The command `aizen-gateway`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from .. import __version__
from ..logs import configure_logging
from ..settings import Settings, SettingsError
from ..storage.migrate import migrate as apply_schema
from ..tracing import Tracing, TracingError
from .audit import audit
from .dev import agent, dev
from .doctor import doctor
from .operator import customer, device, member, token
from .output import as_json, run, variable
from .serve import leave
from .serve import serve as serve_until_stopped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aizen-gateway")
def main() -> None:
    """The API gateway of Aizen vNE. Settings come from the environment; the README lists them."""


@main.command()
def serve() -> None:
    """Run one instance until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_env()
        tracing = Tracing.from_env(
            os.environ, version=__version__, instance_id=settings.instance_id, environment=settings.environment
        )
    except (SettingsError, TracingError) as error:
        for line in str(error).splitlines():
            click.echo(f"aizen-gateway: {line}", err=True)
        sys.exit(2)
    configure_logging(settings.log_level, settings.log_format)
    leave(serve_until_stopped(settings, tracing))


@main.command()
@as_json
def migrate(as_json: bool) -> None:
    """Bring the database of DATABASE_URL to the newest schema."""

    async def work() -> Mapping[str, Any]:
        applied = await apply_schema(variable("DATABASE_URL"))
        return {"applied": applied} if as_json or applied else {"schema": "is up to date"}

    run(work, as_json=as_json)


for command in (dev, agent, customer, member, device, token, audit, doctor):
    main.add_command(command)
