"""The commands for operators: customers, members, devices, tokens (contract section 7)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import click

from .. import __version__
from ..domain.clock import from_ms
from ..domain.values import OPERATOR, Origin, Role
from ..metrics import Metrics
from ..services.devices import Devices
from ..services.dispatch import Dispatcher
from ..services.operators import Operators
from ..services.supabase import issuer_of, mint_token
from ..storage.device_sessions import DeviceSessions, SessionRules
from ..storage.events import EventStream
from ..storage.postgres import Database, PostgresOptions
from ..storage.presence import Presence
from ..storage.queue import Queue
from ..storage.redis_store import RedisOptions, RedisStore
from .output import answer, as_json, run, variable

_ROLES = click.Choice([role.value for role in Role])
# One statement after another: one connection, and nothing is kept that a pooler could not carry.
_ONE_CONNECTION = 1
_ORIGIN = Origin(user_agent="aizen-gateway command line")


@asynccontextmanager
async def database() -> AsyncIterator[Database]:
    """The database of DATABASE_URL, for as long as the block lasts."""
    options = PostgresOptions(variable("DATABASE_URL"), pool_size=_ONE_CONNECTION, statement_cache=False)
    opened = Database(options)
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def _devices() -> AsyncIterator[tuple[Devices, RedisStore]]:
    """The devices' service: what it does takes effect on every instance at once, so it needs Redis too."""
    store = RedisStore.connect(RedisOptions(variable("REDIS_URL")))
    try:
        async with database() as opened:
            # Nobody signs in here, so the rules of sessions do not matter.
            sessions = DeviceSessions(store, SessionRules(ttl_s=1, max_age_s=1, rate=0))
            dispatcher = Dispatcher(
                opened, Queue(store, sessions), EventStream(store), sessions, Metrics(__version__, "command line")
            )
            yield (
                Devices(opened, Presence(store, sessions, timeout_s=1, instance_id="command-line"), dispatcher),
                store,
            )
            await dispatcher.clear_done()
    finally:
        await store.close()


@click.group()
def customer() -> None:
    """Customers."""


def _not_blank(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("must not be blank.")
    return value.strip()


@customer.command("create")
@click.option("--name", required=True, callback=_not_blank, help="Its name.")
@click.option("--id", "customer_id", type=click.UUID, help="Its UUID; made when not given.")
@click.option("--require-second-approver", is_flag=True, help="Whoever proposed may not approve.")
@as_json
def create_customer(name: str, customer_id: UUID | None, require_second_approver: bool, as_json: bool) -> None:
    """Make a customer."""

    async def work() -> Mapping[str, Any]:
        async with database() as opened:
            return await Operators(opened).create_customer(name, customer_id, second_approver=require_second_approver)

    run(work, as_json=as_json)


@customer.command("list")
@as_json
def list_customers(as_json: bool) -> None:
    """List all customers."""

    async def work() -> Mapping[str, Any]:
        async with database() as opened:
            return await Operators(opened).list_customers()

    run(work, as_json=as_json)


@click.group()
def member() -> None:
    """Members of customers."""


@member.command("add")
@click.option("--customer", "customer_id", type=click.UUID, required=True)
@click.option("--user", "user_id", type=click.UUID, required=True, help="The user's `sub`.")
@click.option("--role", type=_ROLES, required=True)
@as_json
def add_member(customer_id: UUID, user_id: UUID, role: str, as_json: bool) -> None:
    """Make a user a member, or give a member another role."""

    async def work() -> Mapping[str, Any]:
        async with database() as opened:
            return await Operators(opened).add_member(customer_id, user_id, Role(role))

    run(work, as_json=as_json)


@member.command("remove")
@click.option("--customer", "customer_id", type=click.UUID, required=True)
@click.option("--user", "user_id", type=click.UUID, required=True)
@as_json
def remove_member(customer_id: UUID, user_id: UUID, as_json: bool) -> None:
    """Take a membership away."""

    async def work() -> Mapping[str, Any]:
        async with database() as opened:
            return await Operators(opened).remove_member(customer_id, user_id)

    run(work, as_json=as_json)


@member.command("list")
@click.option("--customer", "customer_id", type=click.UUID, required=True)
@as_json
def list_members(customer_id: UUID, as_json: bool) -> None:
    """List the members of a customer."""

    async def work() -> Mapping[str, Any]:
        async with database() as opened:
            return await Operators(opened).list_members(customer_id)

    run(work, as_json=as_json)


@click.group()
def device() -> None:
    """Devices."""


@device.command("list")
@click.option("--customer", "customer_id", type=click.UUID, required=True)
@as_json
def list_devices(customer_id: UUID, as_json: bool) -> None:
    """List the devices of a customer."""

    async def work() -> Mapping[str, Any]:
        async with database() as opened:
            return await Operators(opened).list_devices(customer_id)

    run(work, as_json=as_json)


def _change(device_id: str, verb: str, as_json: bool) -> None:
    async def work() -> Mapping[str, Any]:
        async with _devices() as (devices, store):
            verbs = {"suspend": devices.suspend_as, "resume": devices.resume_as, "rotate-secret": devices.rotate_as}
            return await verbs[verb](OPERATOR, device_id, None, from_ms(await store.time_ms()), _ORIGIN)

    run(work, as_json=as_json)


@device.command("suspend")
@click.argument("device_id", metavar="ID")
@as_json
def suspend_device(device_id: str, as_json: bool) -> None:
    """End a device's sessions and sockets, and let it sign in no more."""
    _change(device_id, "suspend", as_json)


@device.command("resume")
@click.argument("device_id", metavar="ID")
@as_json
def resume_device(device_id: str, as_json: bool) -> None:
    """Let a suspended device sign in again."""
    _change(device_id, "resume", as_json)


@device.command("rotate-secret")
@click.argument("device_id", metavar="ID")
@as_json
def rotate_secret(device_id: str, as_json: bool) -> None:
    """Void a device's secret and give it a new activation code."""
    _change(device_id, "rotate-secret", as_json)


@click.group()
def token() -> None:
    """Customer tokens, for trying things out."""


@token.command("mint")
@click.option("--user", type=click.UUID, help="The user's `sub`; needed unless --service.")
@click.option("--customer", type=click.UUID, help="Put into app_metadata, with --role.")
@click.option("--role", type=_ROLES)
@click.option("--service", is_flag=True, help="A service token (role service_role).")
@click.option("--ttl", type=click.IntRange(min=1), default=3600, show_default=True, help="Seconds it lives.")
@as_json
def mint(user: UUID | None, customer: UUID | None, role: str | None, service: bool, ttl: int, as_json: bool) -> None:
    """Print a token signed with SUPABASE_JWT_SECRET."""
    secret = os.environ.get("SUPABASE_JWT_SECRET", "")
    if not secret:
        raise click.ClickException("SUPABASE_JWT_SECRET: must be set")
    if user is None and not service:
        raise click.UsageError("--user is needed, unless --service is given.")
    if (customer is None) != (role is None):
        raise click.UsageError("--customer and --role go together.")
    url = os.environ.get("SUPABASE_URL", "").strip()
    minted = mint_token(
        secret,
        user=str(user) if user else None,
        customer=str(customer) if customer else None,
        role=role,
        service=service,
        ttl=ttl,
        issuer=issuer_of(url) if url else None,
    )
    if as_json:
        answer({"token": minted, "expiresIn": ttl}, as_json=True)
    else:
        click.echo(minted)
