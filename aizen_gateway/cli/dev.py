"""The commands that need a development installation: `dev`, everything on one machine, and `agent`, a device."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..logs import configure_logging

if TYPE_CHECKING:
    from ..dev.agent import AgentConfig

_NEEDS_EXTRA = "this command needs more packages: pip install 'aizen-gateway[dev]' (missing: {})"


@click.command()
@click.option("--fresh", is_flag=True, help="Forget what earlier runs left in the data folder.")
@click.option("--once", is_flag=True, help="End with the story: status 0 when everything succeeded, else 1.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".aizen"),
    show_default=True,
    help="Where data are kept between runs.",
)
def dev(fresh: bool, once: bool, data_dir: Path) -> None:
    """Run everything on this machine and tell the story of a diagnosis.

    Starts a PostgreSQL and a Valkey (DATABASE_URL and REDIS_URL in the environment replace them), the gateway
    (AIZEN_HOST, AIZEN_PORT and its other settings count) and a device agent, and keeps them running until Ctrl-C.
    """
    try:
        from ..dev.demo import DemoOptions, run_demo
    except ModuleNotFoundError as error:
        raise click.ClickException(_NEEDS_EXTRA.format(error.name)) from error
    sys.exit(run_demo(DemoOptions(data_dir, fresh=fresh, once=once), sys.stdout))


@click.command()
@click.option("--gateway", metavar="URL", default="http://127.0.0.1:3001", show_default=True, help="Its address.")
@click.option("--device-id", required=True, help="The id that the device was provisioned with.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where it keeps its secret and unsent results; one agent's own.",
)
@click.option("--code-stdin", is_flag=True, help="Read the activation code from standard input.")
@click.option("--name", help="Its name, told at registration.")
@click.option("--log-file", type=click.Path(path_type=Path), multiple=True, help="A file that `logs` may show; repeat.")
@click.option("--target", metavar="HOST:PORT", multiple=True, help="What `connectivity` tries by itself; repeat.")
@click.option("--log-format", type=click.Choice(["console", "json"]), help="console on a terminal, else json.")
def agent(
    gateway: str,
    device_id: str,
    state_dir: Path,
    code_stdin: bool,
    name: str | None,
    log_file: tuple[Path, ...],
    target: tuple[str, ...],
    log_format: str | None,
) -> None:
    """Be a device: register, wait for commands, run them, report, until SIGTERM or SIGINT.

    The activation code, needed once, comes by --code-stdin or in AIZEN_ACTIVATION_CODE. Status 3: the gateway turned
    the device away for good, and a person has to provision it or rotate its secret.
    """
    try:
        from ..dev.agent import AgentConfig
    except ModuleNotFoundError as error:
        raise click.ClickException(_NEEDS_EXTRA.format(error.name)) from error
    further: dict[str, Any] = {"log_files": log_file} if log_file else {}
    try:
        config = AgentConfig(
            device_id=device_id,
            state_dir=state_dir,
            base_url=gateway,
            activation_code=_activation_code(code_stdin),
            device_name=name,
            connectivity_targets=target,
            **further,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    configure_logging("info", log_format or ("console" if sys.stderr.isatty() else "json"))
    sys.exit(asyncio.run(_be_device(config)))


def _activation_code(from_stdin: bool) -> str | None:
    """The code, or None. Never from the command line, which is for everyone on the machine to read."""
    if not from_stdin:
        return os.environ.get("AIZEN_ACTIVATION_CODE", "").strip() or None
    if sys.stdin.isatty():
        click.echo("Activation code: ", nl=False, err=True)
    return sys.stdin.readline().strip() or None


async def _be_device(config: AgentConfig) -> int:
    """Run the agent until a signal asks it to stop, a second one without grace; return the exit status."""
    from ..dev.agent import NotWelcome, StateUnusable, run_agent

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(run_agent(config, stop=stop))

    def on_signal() -> None:
        if stop.is_set():
            running.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        await running
    except asyncio.CancelledError:
        return 1
    except StateUnusable as error:
        click.echo(f"aizen-gateway: {error}", err=True)
        return 1
    except NotWelcome as error:
        from ..dev.demo_story import NOT_WELCOME

        click.echo(f"aizen-gateway: {error}", err=True)
        return NOT_WELCOME
    return 0
