"""Clients as strangers would write them: plain HTTP and JSON, knowing nothing of the gateway but its contract."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from aiohttp import ClientSession

from aizen_gateway.domain.values import Role
from aizen_gateway.services.operators import Operators
from aizen_gateway.services.supabase import mint_token
from aizen_gateway.storage.postgres import Database

JWT_SECRET = "a secret that is long enough for HS256 in tests"
API = "/api/v1"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `body` is the parsed JSON, None when there is none."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str | None:
        """The error's code, None for a success."""
        return self.body["error"]["code"] if isinstance(self.body, dict) and "error" in self.body else None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that a 400 names."""
        return dict(self.body["error"]["details"]["fields"])


@dataclass(slots=True)
class Client:
    """HTTP with some headers of its own."""

    http: ClientSession
    url: str
    headers: dict[str, str] = field(default_factory=dict)

    async def call(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send `body` as JSON (none when None) and read the answer."""
        kwargs: dict[str, Any] = {} if body is None else {"json": body}
        merged = {**self.headers, **(headers or {})}
        async with self.http.request(method, self.url + path, headers=merged, **kwargs) as response:
            is_json = "json" in response.headers.get("Content-Type", "")
            parsed = await response.json() if is_json else None
            return Reply(response.status, parsed, response.headers.copy())

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.call("GET", path, headers=_dashed(headers))

    async def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return await self.call("POST", path, body, headers=_dashed(headers))


def _dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def expect(reply: Reply, status: int) -> Any:
    """The body of an answer that must have `status`."""
    assert reply.status == status, f"{reply.status}: {reply.body}"
    return reply.body


@dataclass(slots=True)
class CustomerClient(Client):
    """A user of a customer, or a service that acts for it."""

    user_id: str = ""

    async def provision(self, device_id: str, **fields: Any) -> Any:
        """Provision and return the answer's `device`, with its activation code."""
        reply = await self.post(f"{API}/customer/devices/provision", {"deviceId": device_id, **fields})
        return expect(reply, 201)["device"]

    async def open_session(self, device_id: str, type: str = "diagnostic", **fields: Any) -> Any:
        """Open a session and return it."""
        reply = await self.post(f"{API}/customer/sessions", {"deviceId": device_id, "type": type, **fields})
        return expect(reply, 201)["session"]

    async def submit(self, session_id: str, type: str = "ping", **fields: Any) -> Any:
        """Submit a command and return it."""
        reply = await self.post(f"{API}/customer/sessions/{session_id}/commands", {"type": type, **fields})
        return expect(reply, 201)["command"]

    async def decide(self, session_id: str, *, approved: bool = True, **fields: Any) -> Reply:
        """Decide the session, or the command that `commandId` names."""
        body = {"approved": approved, **fields}
        return await self.post(f"{API}/customer/sessions/{session_id}/approve", body)

    async def cancel(self, command: Mapping[str, Any], **fields: Any) -> Reply:
        path = f"{API}/customer/sessions/{command['sessionId']}/commands/{command['id']}/cancel"
        return await self.post(path, fields)

    async def retry(self, command: Mapping[str, Any]) -> Reply:
        return await self.post(f"{API}/customer/sessions/{command['sessionId']}/commands/{command['id']}/retry", {})

    async def session(self, session_id: str) -> Any:
        """Read a session with its commands."""
        return expect(await self.get(f"{API}/customer/sessions/{session_id}"), 200)["session"]

    async def command(self, command: Mapping[str, Any]) -> Any:
        """Read a command anew, through its session."""
        session = await self.session(command["sessionId"])
        return next(found for found in session["commands"] if found["id"] == command["id"])

    async def status(self, device_id: str) -> Any:
        """Read a device's status."""
        return expect(await self.get(f"{API}/customer/devices/{device_id}/status"), 200)["device"]

    async def transcript(self, session_id: str) -> list[Any]:
        return list(expect(await self.get(f"{API}/customer/sessions/{session_id}/transcript"), 200)["entries"])


@dataclass(slots=True)
class DeviceClient(Client):
    """A device that is registered and signed in."""

    device_id: str = ""
    secret: str = ""

    @property
    def token(self) -> str:
        return self.headers["X-Device-Token"]

    async def sign_in(self) -> Reply:
        """Exchange the secret for a token, and use it from now on."""
        reply = await self.post(f"{API}/device/auth", {"deviceId": self.device_id, "deviceSecret": self.secret})
        if reply.status == 200:
            self.headers["X-Device-Token"] = reply.body["token"]
        return reply

    async def heartbeat(self, status: str = "online", **fields: Any) -> Reply:
        return await self.post(f"{API}/device/heartbeat", {"status": status, **fields})

    async def claim(self, **fields: Any) -> list[Any]:
        """Claim and return the commands."""
        return list(expect(await self.post(f"{API}/device/commands/claim", fields), 200)["commands"])

    async def report(self, claimed: Mapping[str, Any], status: str = "success", **fields: Any) -> Reply:
        """Report a result with the claim's token, unless `claimToken` is among the fields."""
        body = {
            "claimToken": claimed["claimToken"],
            "status": status,
            "executedAt": "2026-01-02T03:04:05.678Z",
            "duration": 12,
            **fields,
        }
        return await self.post(f"{API}/device/commands/{claimed['id']}/result", body)

    async def extend(self, claimed: Mapping[str, Any], **fields: Any) -> Reply:
        body = {"claimToken": claimed["claimToken"], **fields}
        return await self.post(f"{API}/device/commands/{claimed['id']}/extend", body)

    async def release(self, claimed: Mapping[str, Any], **fields: Any) -> Reply:
        body = {"claimToken": claimed["claimToken"], **fields}
        return await self.post(f"{API}/device/commands/{claimed['id']}/release", body)

    async def read(self, command_id: str) -> Reply:
        return await self.get(f"{API}/device/commands/{command_id}")


def token_for(user: str | None = None, *, service: bool = False, ttl: int = 3600, **claims: Any) -> str:
    """A Supabase token of the test's project; `customer` and `role` go into its app_metadata."""
    return mint_token(
        JWT_SECRET,
        user=user,
        customer=claims.get("customer"),
        role=claims.get("role"),
        service=service,
        ttl=ttl,
        issuer=None,
    )


@dataclass(slots=True)
class World:
    """One customer at one gateway. `another` makes a second customer at the same one."""

    url: str
    http: ClientSession
    database: Database
    customer_id: str
    owner: CustomerClient
    admin: CustomerClient
    viewer: CustomerClient
    service: CustomerClient

    @classmethod
    async def create(cls, url: str, http: ClientSession, database: Database, *, second_approver: bool = False) -> World:
        """Make the customer and its members as an operator would."""
        operators = Operators(database)
        made = await operators.create_customer("Customer", second_approver=second_approver)
        customer_id = made["customer"]["id"]
        people = {}
        for role in Role:
            user_id = str(uuid4())
            await operators.add_member(UUID(customer_id), UUID(user_id), role)
            headers = {"Authorization": f"Bearer {token_for(user_id)}"}
            people[role.value] = CustomerClient(http, url, headers, user_id=user_id)
        headers = {"Authorization": f"Bearer {token_for(service=True)}", "X-Customer-ID": customer_id}
        service = CustomerClient(http, url, headers)
        return cls(url, http, database, customer_id, people["owner"], people["admin"], people["viewer"], service)

    async def another(self, **options: Any) -> World:
        return await World.create(self.url, self.http, self.database, **options)

    def anyone(self) -> Client:
        """A client without any credentials."""
        return Client(self.http, self.url)

    async def device(self, device_id: str | None = None) -> DeviceClient:
        """A new device: provisioned, registered and signed in."""
        device_id = device_id or f"device-{next(_numbers)}"
        code = (await self.owner.provision(device_id))["activationCode"]
        body = {"deviceId": device_id, "activationCode": code}
        registered = expect(await self.anyone().post(f"{API}/device/register", body), 201)
        device = DeviceClient(self.http, self.url, {}, device_id=device_id, secret=registered["deviceSecret"])
        expect(await device.sign_in(), 200)
        return device
