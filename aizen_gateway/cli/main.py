"""The command `aizen-gateway`. A module is imported when its command is called for: a device agent needs no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

from .. import __version__

# Commands by name, with the module of each.
_COMMANDS: Mapping[str, str] = {
    "agent": "dev",
    "audit": "audit",
    "customer": "operator",
    "dev": "dev",
    "device": "operator",
    "doctor": "doctor",
    "member": "operator",
    "migrate": "migrate",
    "serve": "serve",
    "token": "operator",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f".{module}", __package__), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aizen-gateway")
def main() -> None:
    """The API gateway of Aizen vNE. Settings come from the environment; the README lists them."""
