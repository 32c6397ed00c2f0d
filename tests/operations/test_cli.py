"""The commands of operators, run as they run them: what they do, what they print, how they fail (section 7)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import jwt
import pytest
from aiohttp import ClientSession
from click.testing import CliRunner
from redis.asyncio import Redis

from aizen_gateway import __version__
from aizen_gateway.cli import main
from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, JWT_SECRET, Client, World, expect
from tests.support.inside import waits
from tests.support.processes import Finished, StartGatewayProcess, StartProcess, finished
from tests.support.servers import FreshPostgres

Run = Callable[..., Awaitable[Finished]]
_NOBODY = str(uuid4())


@pytest.fixture
def run_process(start_process: StartProcess, serving_environment: dict[str, str]) -> Run:
    """Call it with a command; keyword arguments are environment variables. Returns when the process has ended."""

    async def run_command(*arguments: str, **variables: str) -> Finished:
        return await finished(await start_process(*arguments, environment=serving_environment | variables))

    return run_command


@pytest.fixture
def run(serving_environment: dict[str, str]) -> Run:
    """As `run_process`, in this process: most of a command's time is the start of its own."""

    async def run_command(*arguments: str, **variables: str) -> Finished:
        environment = serving_environment | variables
        outcome = await asyncio.to_thread(CliRunner().invoke, main, arguments, env=environment)
        assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.exception
        return Finished(outcome.exit_code, outcome.stdout, outcome.stderr.rstrip("\n"))

    return run_command


async def _good(run: Run, *arguments: str) -> Any:
    """What the command, which must succeed, prints with `--json`."""
    outcome = await run(*arguments, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr == ""
    # One object, on one line.
    assert outcome.stdout.count("\n") == 1
    return outcome.json


async def _refused(run: Run, *arguments: str, says: str, **variables: str) -> None:
    """The command must fail with a line that holds `says`, and nothing on stdout."""
    outcome = await run(*arguments, **variables)
    assert outcome.status == 1, outcome.stderr
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert says in line


async def test_help_tells_every_command(run_process: Run) -> None:
    outcome = await run_process("--help")
    assert outcome.status == 0
    told = {line.split()[0] for line in outcome.stdout.splitlines() if line.startswith("  ") and line.strip()}
    assert told > {"serve", "migrate", "dev", "customer", "member", "device", "token"}


@pytest.mark.parametrize(
    ("group", "commands"),
    [
        ("customer", {"create": ("--name", "--id", "--require-second-approver"), "list": ()}),
        (
            "member",
            {
                "add": ("--customer", "--user", "--role", "owner|admin|viewer"),
                "remove": ("--customer", "--user"),
                "list": ("--customer",),
            },
        ),
        ("device", {"list": ("--customer",), "suspend": ("ID",), "resume": ("ID",), "rotate-secret": ("ID",)}),
        ("token", {"mint": ("--user", "--customer", "--role", "--service", "--ttl")}),
    ],
)
async def test_help_tells_what_each_command_takes(run: Run, group: str, commands: dict[str, tuple[str, ...]]) -> None:
    for command, options in commands.items():
        outcome = await run(group, command, "--help")
        assert outcome.status == 0
        for option in (*options, "--json"):
            assert option in outcome.stdout


async def test_the_version_is_told(run_process: Run) -> None:
    outcome = await run_process("--version")
    assert outcome.status == 0
    assert __version__ in outcome.stdout


async def test_customers_are_made_and_listed(run: Run) -> None:
    given = str(uuid4())
    first = (await _good(run, "customer", "create", "--name", "First Ltd"))["customer"]
    options = ("--name", "Second", "--id", given, "--require-second-approver")
    second = (await _good(run, "customer", "create", *options))["customer"]
    assert first["name"] == "First Ltd"
    assert first["requireSecondApprover"] is False
    assert second["id"] == given
    assert second["requireSecondApprover"] is True
    assert (await _good(run, "customer", "list"))["customers"] == [first, second]
    plain = await run("customer", "list")
    assert plain.status == 0
    lines = plain.stdout.splitlines()
    assert len(lines) == 2
    assert first["id"] in lines[0]
    assert "First Ltd" in lines[0]
    await _refused(run, "customer", "create", "--name", "Again", "--id", given, says="exists already")


async def test_members_are_added_changed_listed_and_removed(run: Run) -> None:
    customer = (await _good(run, "customer", "create", "--name", "A"))["customer"]["id"]
    other = (await _good(run, "customer", "create", "--name", "B"))["customer"]["id"]
    user = str(uuid4())
    whom = ("--customer", customer, "--user", user)
    assert (await _good(run, "member", "list", "--customer", customer))["members"] == []
    assert (await run("member", "list", "--customer", customer)).stdout == "no members\n"
    added = (await _good(run, "member", "add", *whom, "--role", "viewer"))["member"]
    assert (added["userId"], added["customerId"], added["role"]) == (user, customer, "viewer")
    assert (await _good(run, "member", "add", *whom, "--role", "admin"))["member"]["role"] == "admin"
    (listed,) = (await _good(run, "member", "list", "--customer", customer))["members"]
    assert listed["role"] == "admin"
    elsewhere = ("member", "add", "--customer", other, "--user", user, "--role", "admin")
    await _refused(run, *elsewhere, says="another customer")
    assert (await _good(run, "member", "remove", *whom))["removed"]["userId"] == user
    await _refused(run, "member", "remove", *whom, says="no member")
    assert (await _good(run, "member", "list", "--customer", customer))["members"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("member", "list", "--customer", _NOBODY),
        ("member", "add", "--customer", _NOBODY, "--user", _NOBODY, "--role", "admin"),
        ("device", "list", "--customer", _NOBODY),
    ],
)
async def test_a_customer_that_does_not_exist_is_told_in_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    await _refused(run, *arguments, says="There is no such customer.")


@pytest.mark.parametrize("command", ["suspend", "resume", "rotate-secret"])
async def test_a_device_that_does_not_exist_is_told_in_one_line(run: Run, command: str) -> None:
    await _refused(run, "device", command, "nobody-1", says="DEVICE_NOT_FOUND")


@pytest.mark.parametrize(
    "arguments",
    [
        ("customer", "create"),
        ("customer", "create", "--name", "x", "--id", "no-uuid"),
        ("member", "add", "--customer", _NOBODY, "--user", _NOBODY, "--role", "king"),
        ("token", "mint"),
        ("token", "mint", "--user", _NOBODY, "--customer", _NOBODY),
        ("token", "mint", "--user", _NOBODY, "--ttl", "0"),
        ("nonsense",),
    ],
)
async def test_a_wrong_use_is_told_with_how_to_use_it(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = await run(*arguments)
    assert outcome.status == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("Usage: ")
    assert "Traceback" not in outcome.stderr


async def test_an_empty_name_of_a_customer_is_refused(run: Run) -> None:
    assert (await run("customer", "create", "--name", "  ")).status != 0
    assert (await _good(run, "customer", "list"))["customers"] == []


async def test_what_is_missing_is_named(run: Run) -> None:
    await _refused(run, "customer", "list", says="DATABASE_URL: must be set", DATABASE_URL="")
    await _refused(run, "device", "suspend", "device-1", says="REDIS_URL: must be set", REDIS_URL="")
    minting = ("token", "mint", "--user", _NOBODY)
    await _refused(run, *minting, says="SUPABASE_JWT_SECRET: must be set", SUPABASE_JWT_SECRET="")


async def test_servers_that_are_away_are_told_in_one_line(run: Run) -> None:
    nowhere = "postgresql://nobody:pa55word@127.0.0.1:1/nothing"
    await _refused(run, "customer", "list", says="database", DATABASE_URL=nowhere)
    await _refused(run, "migrate", says="database", DATABASE_URL=nowhere)
    await _refused(run, "device", "suspend", "device-1", says="Redis", REDIS_URL="redis://127.0.0.1:1/0")


async def test_a_wrong_password_or_database_is_told_in_one_line(run: Run, serving_environment: dict[str, str]) -> None:
    good = serving_environment["DATABASE_URL"]
    wrong = good.replace("postgres:", "postgres:x", 1)
    missing = f"{good.rpartition('/')[0]}/missing"
    for url in (wrong, missing):
        await _refused(run, "customer", "list", says="database", DATABASE_URL=url)
        await _refused(run, "migrate", says="database", DATABASE_URL=url)


async def test_a_database_without_the_schema_says_what_to_do(run_process: Run, fresh_postgres: FreshPostgres) -> None:
    server = await fresh_postgres()
    connection = await asyncpg.connect(server.url)
    await connection.execute("create database bare")
    await connection.close()
    url = f"{server.url.rpartition('/')[0]}/bare"
    await _refused(run_process, "customer", "list", says="aizen-gateway migrate", DATABASE_URL=url)
    assert (await run_process("migrate", DATABASE_URL=url)).status == 0
    assert (await run_process("customer", "list", DATABASE_URL=url)).stdout == "no customers\n"


async def test_minted_tokens_work(
    run: Run, run_process: Run, start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    user = str(uuid4())

    async def answer_for(*options: str, **headers: str) -> Any:
        minted = await _good(run, "token", "mint", *options)
        bearer = {"Authorization": f"Bearer {minted['token']}"}
        return await Client(http, gateway.url, bearer | headers).get(f"{API}/customer/devices")

    as_owner = ("--user", world.owner.user_id)
    expect(await answer_for(*as_owner), 200)
    expect(await answer_for("--user", user, "--customer", world.customer_id, "--role", "viewer"), 200)
    expect(await answer_for("--service", **{"X-Customer-ID": world.customer_id}), 200)
    assert (await answer_for("--service")).status == 400
    assert (await answer_for("--user", user)).code == "NO_CUSTOMER"
    # Without --json it is the token alone, to be put into a command line.
    plain = await run_process("token", "mint", *as_owner)
    headers = {"Authorization": f"Bearer {plain.stdout.strip()}"}
    expect(await Client(http, gateway.url, headers).get(f"{API}/customer/devices"), 200)
    assert (await _good(run, "token", "mint", *as_owner, "--ttl", "60"))["expiresIn"] == 60


async def test_a_token_is_minted_for_the_project_that_is_set(run: Run) -> None:
    minting = ("token", "mint", "--user", _NOBODY, "--json")
    outcome = await run(*minting, SUPABASE_URL="https://project.supabase.co/")
    claims = jwt.decode(outcome.json["token"], JWT_SECRET, algorithms=["HS256"], audience="authenticated")
    assert claims["iss"] == "https://project.supabase.co/auth/v1"
    assert claims["sub"] == _NOBODY


async def test_suspending_ends_a_devices_sessions_on_a_running_gateway(
    run_process: Run, start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    device = await world.device("device-cli")
    session = await world.owner.open_session(device.device_id)
    (listed,) = (await _good(run_process, "device", "list", "--customer", world.customer_id))["devices"]
    assert listed["id"] == "device-cli"
    suspended = (await _good(run_process, "device", "suspend", "device-cli"))["device"]
    assert suspended["status"] == "suspended"
    assert (await device.heartbeat()).status == 401
    assert (await device.sign_in()).code == "DEVICE_SUSPENDED"
    assert (await world.owner.session(session["id"]))["status"] == "canceled"
    resumed = (await _good(run_process, "device", "resume", "device-cli"))["device"]
    assert resumed["status"] == "offline"
    assert (await device.heartbeat()).status == 401
    expect(await device.sign_in(), 200)
    expect(await device.heartbeat(), 200)
    # It is in the audit log as what it was.
    records = expect(await world.owner.get(f"{API}/customer/audit"), 200)["records"]
    acts = {record["action"]: record["actor"] for record in records}
    assert {"device.suspended", "device.resumed"} <= acts.keys()
    assert world.owner.user_id not in json.dumps(acts["device.suspended"])


async def test_suspending_ends_a_long_poll_that_waits(
    run: Run, start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database, valkey: Redis
) -> None:
    gateway = await start_gateway_process()
    device = await (await World.create(gateway.url, http, database)).device()
    poll = asyncio.create_task(device.post(f"{API}/device/commands/claim", {"waitMs": 30_000}))
    await waits(valkey, device.device_id)
    await _good(run, "device", "suspend", device.device_id)
    async with asyncio.timeout(5):
        assert (await poll).status == 401


async def test_rotating_gives_a_code_that_registers_again(
    run: Run, start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    device = await world.device()
    rotated = (await _good(run, "device", "rotate-secret", device.device_id))["device"]
    assert (await device.heartbeat()).status == 401
    assert (await device.sign_in()).code == "INVALID_CREDENTIALS"
    body = {"deviceId": device.device_id, "activationCode": rotated["activationCode"]}
    registered = expect(await world.anyone().post(f"{API}/device/register", body), 201)
    device.secret = registered["deviceSecret"]
    expect(await device.sign_in(), 200)


async def test_what_a_person_reads_holds_the_new_code(
    run: Run, start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    device = await (await World.create(gateway.url, http, database)).device()
    plain = await run("device", "rotate-secret", device.device_id)
    assert plain.status == 0
    assert "activationCode=" in plain.stdout
    assert "{" not in plain.stdout
