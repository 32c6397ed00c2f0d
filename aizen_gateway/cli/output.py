"""How the operator commands answer: JSON when asked, lines for people otherwise; failures in one line and a status."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import asyncpg
import click

from .. import setting_values
from ..domain.errors import GatewayError
from ..storage.migrate import MigrationFailed

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def as_json(command: _Decorated) -> _Decorated:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def answer(body: Mapping[str, Any], *, as_json: bool) -> None:
    """Print an answer."""
    if as_json:
        click.echo(json.dumps(body))
        return
    for name, value in body.items():
        rows = value if isinstance(value, list) else [value]
        if not rows:
            click.echo(f"no {name}")
        for row in rows:
            click.echo("  ".join(f"{key}={item}" for key, item in row.items()) if isinstance(row, dict) else row)


@contextmanager
def explained() -> Iterator[None]:
    """Inside, an expected failure is one line and exit status 1."""
    try:
        yield
    except GatewayError as error:
        raise click.ClickException(f"{error.message} ({error.code})") from error
    except asyncpg.UndefinedTableError as error:
        raise click.ClickException("The schema is not there: run `aizen-gateway migrate` first.") from error
    except MigrationFailed as error:
        raise click.ClickException(str(error)) from error
    except asyncpg.PostgresError as error:
        raise click.ClickException(f"The database cannot be used: {type(error).__name__}") from error


def run(work: Callable[[], Awaitable[Mapping[str, Any]]], *, as_json: bool) -> None:
    """Do `work` on a loop and print what it returns; an expected failure is one line and exit status 1."""
    try:
        with explained():
            body = asyncio.run(_awaited(work))
    except OSError as error:
        raise click.ClickException(f"The database cannot be used: {type(error).__name__}") from error
    answer(body, as_json=as_json)


async def _awaited(work: Callable[[], Awaitable[Mapping[str, Any]]]) -> Mapping[str, Any]:
    return await work()


def variable(name: str) -> str:
    """`DATABASE_URL` or `REDIS_URL` from the environment, checked as the gateway checks it."""
    parsers = {"DATABASE_URL": setting_values.database_url, "REDIS_URL": setting_values.redis_url}
    text = os.environ.get(name, "").strip()
    if not text:
        raise click.ClickException(f"{name}: must be set")
    try:
        return parsers[name](text)
    except setting_values.BadValue as error:
        raise click.ClickException(f"{name}: {error}") from error
