"""The story itself: a device arrives, is diagnosed, and is changed with a second person's approval.

Everything goes over the gateway's own API (contract section 4), as a portal would do it; nothing is looked up in a
database and nothing is made up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from aizen_gateway.dev.demo_customer import Identities, Person
from aizen_gateway.dev.demo_environment import DemoFailed
from aizen_gateway.dev.demo_findings import sentence
from aizen_gateway.dev.demo_print import Teller
from aizen_gateway.dev.demo_processes import Processes, Program
from aizen_gateway.domain.lifecycle import is_final
from aizen_gateway.domain.values import CommandStatus

DEVICE_NAME = "Demo probe"
# The status with which `aizen-gateway agent` ends when the gateway turns it away for good.
NOT_WELCOME = 3

_LABEL = "Reception, second floor"
_ARRIVAL_S = 20.0
_COMMAND_S = 60.0
_POLL_S = 0.1


class Story:
    """One telling. `succeeded` says at the end whether everything went as it should."""

    def __init__(
        self, teller: Teller, processes: Processes, identities: Identities, owner: Person, admin: Person
    ) -> None:
        self._teller = teller
        self._processes = processes
        self._identities = identities
        self._device = f"/devices/{identities.device_id}"
        self._owner = owner
        self._admin = admin
        self.succeeded = True

    async def device_arrives(self, *, knows_secret: bool) -> None:
        """Provision the device where needed and start its agent; return once it is online.

        `knows_secret`: the agent has registered in an earlier run. Raises `DemoFailed`.
        """
        code = await self._provision(rotate=not knows_secret)
        before = (await self._owner.ask("GET", f"{self._device}/status"))["device"]["lastHeartbeat"]
        agent = await self._start_agent(code)
        while not await self._is_online(agent, before):
            if agent.process.returncode != NOT_WELCOME:
                raise DemoFailed(agent.ending())
            if code is not None:
                raise DemoFailed(f"{agent.ending()}\n--fresh begins again with another device")
            # Its secret was rotated by hand, say: it needs a new code.
            code = await self._new_code()
            agent = await self._start_agent(code)
        self._processes.watch(agent)
        how = "registered with the code, signed in" if code else "signed in with the secret that it keeps"
        self._teller.row("agent", f"{how}: online")

    async def _provision(self, *, rotate: bool) -> str | None:
        """Return the activation code, None for a device that is registered and needs none."""
        device_id = self._identities.device_id
        body = {"deviceId": device_id, "name": DEVICE_NAME, "location": "this machine"}
        answer = await self._owner.call("POST", "/devices/provision", body)
        if answer.code is None:
            code: str = answer.body["device"]["activationCode"]
            self._teller.row("device", f"{device_id} provisioned, activation code {code}")
            return code
        if answer.code != "DEVICE_EXISTS":
            raise DemoFailed(f"the device cannot be provisioned: {answer.words}")
        status = (await self._owner.ask("GET", f"{self._device}/status"))["device"]["status"]
        if status == "suspended":
            await self._owner.ask("POST", f"{self._device}/resume")
        if rotate:
            return await self._new_code()
        self._teller.row("device", f"{device_id}, registered in an earlier run")
        return None

    async def _new_code(self) -> str:
        """A registered device whose secret is lost gets a new activation code."""
        answer = await self._owner.ask("POST", f"{self._device}/rotate-secret")
        code: str = answer["device"]["activationCode"]
        self._teller.row("device", f"{self._identities.device_id}: its secret is void, new activation code {code}")
        return code

    async def _start_agent(self, code: str | None) -> Program:
        return await self._processes.start_agent(self._identities.device_id, DEVICE_NAME, code)

    async def _is_online(self, agent: Program, before: str | None) -> bool:
        """Wait for the agent's first heartbeat; False when the agent ends instead. Raises `DemoFailed`."""
        deadline = monotonic() + _ARRIVAL_S
        while monotonic() < deadline:
            device = (await self._owner.ask("GET", f"{self._device}/status"))["device"]
            if device["status"] == "online" and device["lastHeartbeat"] != before:
                return True
            if agent.process.poll() is not None:
                return False
            await asyncio.sleep(_POLL_S)
        raise DemoFailed(f"the device is not online after {_ARRIVAL_S:.0f} s\nits log: {agent.log}")

    async def open_session(self) -> str:
        """The owner opens a diagnostic session; return its id. Raises `DemoFailed`."""
        body = {"deviceId": self._identities.device_id, "type": "diagnostic", "description": "The internet is slow"}
        answer = await self._owner.call("POST", "/sessions", body)
        if answer.code == "SESSION_ACTIVE":
            await self._owner.ask("POST", f"/sessions/{answer.body['error']['details']['sessionId']}/close")
            answer = await self._owner.call("POST", "/sessions", body)
        if answer.code is not None:
            raise DemoFailed(f"no session can be opened: {answer.words}")
        session_id: str = answer.body["session"]["id"]
        self._teller.row("session", f"{session_id}, {answer.body['session']['status']}", good=None)
        return session_id

    async def diagnose(self, session_id: str) -> None:
        """The owner asks for five diagnostics at once, and each is told as it comes back. Raises `DemoFailed`."""
        address = urlsplit(self._owner.base_url)
        wanted: list[tuple[str, dict[str, Any]]] = [
            ("ping", {"host": "127.0.0.1", "count": 3, "intervalMs": 200}),
            ("dns", {"name": "localhost"}),
            ("port_check", {"host": address.hostname, "port": address.port}),
            ("interfaces", {}),
            ("system_info", {}),
        ]
        waiting = [
            await self._submit(session_id, kind, CommandStatus.QUEUED, parameters) for kind, parameters in wanted
        ]
        with self._teller.working("the device is at work"):
            while waiting:
                ended = await self._next_ended(session_id, waiting)
                waiting.remove(ended["id"])
                self._tell_result(ended)

    async def change(self, session_id: str) -> None:
        """The owner proposes a change, may not approve it, the admin does, and the device makes it.

        Raises `DemoFailed`.
        """
        parameters, reason = {"label": _LABEL}, "So that whoever comes finds the right one"
        command = await self._submit(
            session_id, "agent.set_label", CommandStatus.PENDING_APPROVAL, parameters, reason=reason
        )
        self._teller.row("owner proposes", f"agent.set_label {json.dumps(parameters)}: waits for approval", good=None)
        decide, decision = f"/sessions/{session_id}/approve", {"approved": True, "commandId": command}
        refused = await self._owner.call("POST", decide, decision)
        expected = (refused.status, refused.code) == (403, "SELF_APPROVAL")
        said = "was let through" if refused.code is None else f"refused, {refused.words}"
        self._tell(expected, "owner approves", said)
        approvals = (await self._admin.ask("GET", "/approvals"))["approvals"]
        found = [each["command"] for each in approvals if each.get("command", {}).get("id") == command]
        if not found:
            raise DemoFailed(f"the proposed change {command} is not among what waits for approval")
        digest = found[0]["digest"]
        self._teller.row("admin reads", f"{found[0]['type']} {json.dumps(found[0]['parameters'])}", good=None)
        decided = await self._admin.ask("POST", decide, decision | {"digest": digest})
        self._tell(decided["command"]["status"] == "approved", "admin approves", f"exactly that, {digest}")
        with self._teller.working("the device is at work"):
            self._tell_result(await self._next_ended(session_id, [command]))

    async def tell_transcript(self, session_id: str) -> None:
        """What the gateway has written down of the session, in short. Raises `DemoFailed`."""
        session = (await self._owner.ask("GET", f"/sessions/{session_id}"))["session"]
        types = {command["id"]: command["type"] for command in session["commands"]}
        entries = (await self._owner.ask("GET", f"/sessions/{session_id}/transcript"))["entries"]
        self._teller.table(
            [
                (
                    entry["at"][11:23],
                    entry["event"],
                    types.get(entry.get("commandId"), ""),
                    self._identities.name_of(entry["actor"]),
                )
                for entry in entries
            ]
        )

    async def _submit(
        self, session_id: str, kind: str, status: CommandStatus, parameters: dict[str, Any], **further: Any
    ) -> str:
        """Submit a command and return its id. Raises `DemoFailed` when the gateway treats it differently."""
        body = {"type": kind, "parameters": parameters, **further}
        command = (await self._owner.ask("POST", f"/sessions/{session_id}/commands", body))["command"]
        if command["kind"] != ("diagnostic" if status is CommandStatus.QUEUED else "remediation"):
            raise DemoFailed(f"AIZEN_DIAGNOSTIC_TYPES: the story needs {kind} to be what it is by default")
        return str(command["id"])

    async def _next_ended(self, session_id: str, waiting: Sequence[str]) -> Mapping[str, Any]:
        """Wait for the first of these commands to end, and return it. Raises `DemoFailed`."""
        deadline = monotonic() + _COMMAND_S
        while monotonic() < deadline:
            session = (await self._owner.ask("GET", f"/sessions/{session_id}"))["session"]
            ended = [
                command
                for command in session["commands"]
                if command["id"] in waiting and is_final(CommandStatus(command["status"]))
            ]
            if ended:
                return min(ended, key=lambda command: str(command["completedAt"]))
            await asyncio.sleep(_POLL_S)
        raise DemoFailed(f"the device has not answered after {_COMMAND_S:.0f} s")

    def _tell_result(self, command: Mapping[str, Any]) -> None:
        note = ""
        if command.get("result") and command.get("claimedAt"):
            reached = datetime.fromisoformat(command["claimedAt"]) - datetime.fromisoformat(_ready_at(command))
            note = f"reached it in {reached.total_seconds() * 1000:.0f} ms"
            note += f", took {command['result']['duration']} ms"
        self._tell(command["status"] == CommandStatus.SUCCEEDED, command["type"], sentence(command), note)

    def _tell(self, good: bool, label: str, text: str, note: str = "") -> None:
        self.succeeded = self.succeeded and good
        self._teller.row(label, text, good=good, note=note)


def _ready_at(command: Mapping[str, Any]) -> str:
    """From when on the device could have it."""
    return str((command.get("approval") or {}).get("at") or command["createdAt"])
