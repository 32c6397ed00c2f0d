"""The embedded servers: they keep data, give clear answers, and never outlive whoever started them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio

from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedServerError, EmbeddedValkey
from tests.support.servers import FreshPostgres, FreshValkey

KINDS = [EmbeddedPostgres, EmbeddedValkey]
Kind = type[EmbeddedPostgres] | type[EmbeddedValkey]

# A process that starts both servers, names them and waits.
STARTER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedValkey

async def main(directory, durable):
    async with await EmbeddedPostgres.start(directory / "postgres", durable=durable) as postgres:
        async with await EmbeddedValkey.start(directory / "valkey", durable=durable) as valkey:
            connection = await asyncpg.connect(postgres.url)
            await connection.execute("create table kept (what text)")
            print(postgres.pid, valkey.pid, flush=True)
            await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2] == "durable"))
"""


@pytest.fixture
def data_dir(server_dir: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=server_dir) as directory:
        path = Path(directory)
        path.chmod(0o711)
        yield path


async def remember(server: EmbeddedServer) -> None:
    if isinstance(server, EmbeddedPostgres):
        connection = await asyncpg.connect(server.url)
        await connection.execute("create table if not exists kept (what text); insert into kept values ('this')")
        await connection.close()
    else:
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await client.set("kept", "this")


async def remembers(server: EmbeddedServer) -> bool:
    if isinstance(server, EmbeddedPostgres):
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval("select to_regclass('kept')") is not None
        finally:
            await connection.close()
    async with redis.asyncio.Redis.from_url(server.url) as client:
        return bool(await client.exists("kept"))


async def start_elsewhere(data_dir: Path, how: str) -> tuple[asyncio.subprocess.Process, list[psutil.Process]]:
    """Start both servers from a process of its own; return it and the servers with all their children."""
    starter = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STARTER, str(data_dir), how), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert starter.stdout is not None
    servers = [psutil.Process(int(pid)) for pid in (await starter.stdout.readline()).split()]
    return starter, [*servers, *(child for server in servers for child in server.children(recursive=True))]


async def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended within 20 s; what nobody has collected yet has ended too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while any(runs(process) for process in processes):  # noqa: ASYNC110 - they are nobody's children any more
                await asyncio.sleep(0.02)
            return True
    return False


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", KINDS)
async def test_data_are_kept_between_runs_and_fresh_forgets_them(kind: Kind, data_dir: Path) -> None:
    async with await kind.start(data_dir / "a b") as server:
        await remember(server)
    async with await kind.start(data_dir / "a b") as server:
        assert await remembers(server)
    async with await kind.start(data_dir / "a b", fresh=True) as server:
        assert not await remembers(server)


@pytest.mark.parametrize("how", ["durable", "fast"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
async def test_no_server_outlives_a_process_that_was_killed(how: str, data_dir: Path) -> None:
    starter, servers = await start_elsewhere(data_dir, how)
    starter.kill()
    await starter.wait()
    assert await all_gone(servers)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
async def test_a_paused_server_of_a_test_does_not_outlive_the_killed_process(data_dir: Path) -> None:
    starter, servers = await start_elsewhere(data_dir, "fast")
    for server in servers[:2]:
        server.suspend()
    starter.kill()
    await starter.wait()
    assert await all_gone(servers)


async def test_ctrl_c_in_a_terminal_ends_the_starter_and_its_servers(data_dir: Path) -> None:
    starter, servers = await start_elsewhere(data_dir, "durable")
    assert all(os.getpgid(server.pid) != starter.pid for server in servers)
    os.killpg(starter.pid, signal.SIGINT)
    await starter.wait()
    assert await all_gone(servers)
    log = (data_dir / "postgres" / "server.log").read_text()
    assert "database system is shut down" in log


async def test_data_survive_the_killed_process_and_serve_the_next_one(data_dir: Path) -> None:
    starter, _ = await start_elsewhere(data_dir, "durable")
    starter.kill()
    await starter.wait()
    async with await EmbeddedPostgres.start(data_dir / "postgres") as server:
        assert await remembers(server)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_second_server_on_the_same_data_is_refused_with_the_holder_named(kind: Kind, data_dir: Path) -> None:
    async with await kind.start(data_dir, durable=False) as server:
        await remember(server)
        with pytest.raises(EmbeddedServerError, match=rf"already runs on .*started by process {os.getpid()}"):
            await kind.start(data_dir, durable=False, fresh=True)
        assert await remembers(server)


@pytest.mark.parametrize("kind", KINDS)
async def test_another_port_is_taken_when_the_wanted_one_is_in_use(kind: Kind, data_dir: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        async with await kind.start(data_dir, durable=False, port=taken) as server:
            assert server.port != taken
            assert not await remembers(server)


async def test_a_crashed_postgres_starts_again_on_its_port_with_its_data(fresh_postgres: FreshPostgres) -> None:
    server = await fresh_postgres()
    await remember(server)
    url = server.url
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await server.restart()
    assert server.url == url
    assert await remembers(server)


async def test_a_leftover_pid_file_that_names_a_strange_process_is_no_obstacle(data_dir: Path) -> None:
    server = await EmbeddedPostgres.start(data_dir, durable=False)
    await server.stop()
    (data_dir / "data" / "postmaster.pid").write_text(f"{os.getppid()}\n{data_dir / 'data'}\n0\n5432\n\n\n\n")
    async with await EmbeddedPostgres.start(data_dir, durable=False) as server:
        assert not await remembers(server)


async def test_a_paused_server_is_stopped_in_order(fresh_postgres: FreshPostgres, fresh_valkey: FreshValkey) -> None:
    for server in (await fresh_postgres(), await fresh_valkey()):
        process = server.process
        os.kill(server.pid, signal.SIGSTOP)
        await server.stop()
        assert process.returncode == 0


async def test_a_start_that_is_cut_short_leaves_nothing_and_can_be_repeated(data_dir: Path) -> None:
    others = psutil.Process().children()
    start = asyncio.create_task(EmbeddedPostgres.start(data_dir, durable=False))
    while not (initdb := [each for each in psutil.Process().children() if each not in others]):  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert await all_gone(initdb)
    async with await EmbeddedPostgres.start(data_dir, durable=False) as server:
        assert not await remembers(server)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_ctrl_c_that_reaches_the_program_first_is_no_failed_start(kind: Kind, data_dir: Path) -> None:
    loop = asyncio.get_running_loop()
    ours = psutil.Process()
    before = set(ours.children())

    def interrupt() -> None:
        """End the program, let that be seen, and only then cancel the start."""
        begun = set(ours.children()) - before
        if not begun:
            loop.call_soon(interrupt)
            return
        for program in begun:
            program.kill()
            while program.status() != psutil.STATUS_ZOMBIE:
                pass
        loop.call_later(0.01, starting.cancel)

    starting = asyncio.create_task(kind.start(data_dir, durable=False))
    loop.call_soon(interrupt)
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_a_server_that_cannot_start_is_explained_by_its_own_log(data_dir: Path) -> None:
    server = await EmbeddedPostgres.start(data_dir, durable=False)
    await server.stop()
    (data_dir / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedServerError, match="database files are incompatible with server"):
        await EmbeddedPostgres.start(data_dir, durable=False)


async def test_nobody_else_on_the_machine_gets_in(postgres_server: EmbeddedPostgres, redis_url: str) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=postgres_server.port, user="postgres", password="postgres")
    address = redis_url.rpartition("@")[2]
    async with redis.asyncio.Redis.from_url(f"redis://{address}") as client:
        with pytest.raises(redis.AuthenticationError):
            await client.ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="what root has to do about a server that refuses to run as root")
async def test_root_gets_a_postgres_even_below_a_directory_closed_to_others(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    async with await EmbeddedPostgres.start(closed / "postgres", durable=False) as server:
        assert psutil.Process(server.pid).uids().effective != 0
    assert closed.stat().st_mode & 0o777 == 0o701
    assert f"made the directory {closed} searchable" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_root_serves_existing_data_as_the_account_that_owns_them(data_dir: Path) -> None:
    server = await EmbeddedPostgres.start(data_dir, durable=False)
    await server.stop()
    for path in (data_dir / "data", *(data_dir / "data").rglob("*")):
        os.chown(path, 54321, 54321)
    async with await EmbeddedPostgres.start(data_dir, durable=False) as server:
        assert psutil.Process(server.pid).uids().effective == 54321
