"""How to go on by hand while the demonstration runs: lines for a shell, each of which does something when pasted."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from aizen_gateway.dev.agent_disk import write_atomically
from aizen_gateway.dev.demo_customer import Identities, Person
from aizen_gateway.dev.demo_environment import DataFolder, DemoEnvironment

# The id is the first text of the first object in an answer that makes something.
_ID = """cut -d'"' -f6"""


def curl_lines(owner: Person, admin: Person, identities: Identities, session_id: str) -> list[str]:
    """Shell variables with the tokens, and `curl` lines that use them; comments begin with `#`."""
    session, commands = "$API/sessions/$SESSION", "$API/sessions/$SESSION/commands"
    check = {"type": "http_check", "parameters": {"url": f"{owner.base_url}/healthz"}}
    change = {"type": "agent.set_label", "parameters": {"label": "Cellar"}}
    another = {"deviceId": identities.device_id, "type": "diagnostic"}
    decision = r'"{\"approved\":true,\"commandId\":\"$COMMAND\"}"'
    return [
        f"API={owner.base_url}/api/v1/customer DEVICE={identities.device_id} SESSION={session_id}",
        f"OWNER='Authorization: Bearer {owner.token}'",
        f"ADMIN='Authorization: Bearer {admin.token}'",
        "JSON='Content-Type: application/json'",
        "# the device: its status, its last heartbeat, what waits for it",
        _curl("OWNER", "$API/devices/$DEVICE/status"),
        "# another diagnostic, and the session with all results",
        _curl("OWNER", commands, _body(check)),
        _curl("OWNER", session),
        "# a change: the owner proposes it, the admin sees what waits and approves it, the transcript tells",
        f"COMMAND=$({_curl('OWNER', commands, _body(change), newline=False)} | {_ID})",
        _curl("ADMIN", "$API/approvals"),
        _curl("ADMIN", f"{session}/approve", decision),
        _curl("OWNER", f"{session}/transcript"),
        "# close the session and open another one",
        _curl("OWNER", f"{session}/close", "'{}'"),
        f"SESSION=$({_curl('OWNER', '$API/sessions', _body(another), newline=False)} | {_ID})",
    ]


def write_operator_environment(
    folder: DataFolder, environment: DemoEnvironment, identities: Identities, database_url: str, redis_url: str
) -> list[str]:
    """Write what operator commands need to work with the running gateway, and return shell lines that use it.

    The file is for this user alone: it has the servers' passwords in it. Raises `OSError`.
    """
    variables = environment.of_operator(database_url, redis_url)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    write_atomically(folder.environment, ("\n".join(lines) + "\n").encode())
    return [
        f". {shlex.quote(str(folder.environment))}",
        f"aizen-gateway device list --customer {identities.customer_id}",
    ]


def _curl(who: str, url: str, body: str | None = None, *, newline: bool = True) -> str:
    flags = "-sw '\\n'" if newline else "-s"
    sent = f' -H "$JSON" -d {body}' if body else ""
    return f'curl {flags} -H "${who}"{sent} {url}'


def _body(fields: dict[str, Any]) -> str:
    return shlex.quote(json.dumps(fields, separators=(",", ":")))
