"""Who takes part in the demonstration: one customer, an owner, an admin, a device; and how the two people call.

They are made once for a data folder and are the same in every later run. The people use the customer API (contract
section 4) as a portal would, with tokens such as Supabase signs.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field, fields
from typing import Any, Self
from uuid import uuid4

import aiohttp

from aizen_gateway.dev.agent_disk import write_atomically
from aizen_gateway.dev.demo_environment import DataFolder, DemoEnvironment, DemoFailed
from aizen_gateway.services.supabase import mint_token

# Seconds; a working day, and the night before.
TOKEN_TTL_S = 24 * 3600
_CALL_S = 40.0
_PATIENCE = 5
_LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Identities:
    """Who they are. The device's id ends at random: ids are unique across all customers of a database."""

    customer_id: str
    owner_id: str
    admin_id: str
    device_id: str

    @classmethod
    def of(cls, folder: DataFolder) -> Self:
        """Those of the folder, made at the first call. Raises `DemoFailed`, `OSError`."""
        try:
            return cls(**json.loads(folder.identities.read_bytes()))
        except FileNotFoundError:
            made = cls(str(uuid4()), str(uuid4()), str(uuid4()), f"probe-{secrets.token_hex(3)}")
        except (ValueError, TypeError):
            raise DemoFailed(f"{folder.identities} cannot be read; --fresh makes new identities") from None
        content = {each.name: getattr(made, each.name) for each in fields(made)}
        write_atomically(folder.identities, json.dumps(content, indent=2).encode())
        return made

    def name_of(self, actor: str) -> str:
        """What a person calls an actor of the transcript."""
        return {self.owner_id: "owner", self.admin_id: "admin"}.get(actor, actor)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said. `body` is the parsed JSON."""

    status: int
    body: Any

    @property
    def code(self) -> str | None:
        """The error's code, None for a success."""
        return self.body["error"]["code"] if self.status >= 400 else None

    @property
    def words(self) -> str:
        """An error in one line."""
        return f"{self.status} {self.code}: {self.body['error']['message']}"


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the customer. `token` is a Supabase access token of a day."""

    http: aiohttp.ClientSession = field(repr=False)
    base_url: str
    token: str = field(repr=False)

    @classmethod
    def sign_in(cls, http: aiohttp.ClientSession, environment: DemoEnvironment, user_id: str) -> Self:
        """Sign a token for the user, as the Supabase project would."""
        assert environment.jwt_secret is not None
        token = mint_token(
            environment.jwt_secret,
            user=user_id,
            customer=None,
            role=None,
            service=False,
            ttl=TOKEN_TTL_S,
            issuer=environment.issuer,
        )
        return cls(http, environment.base_url, token)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """Call the customer API at `path`; comes back later when the gateway asks for it.

        Raises `DemoFailed` when the gateway is not reached or answers in no form of the contract's.
        """
        for _ in range(_PATIENCE):
            answer, pause_s = await self._try(method, path, body)
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        return answer

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """As `call`, and return the body of a success. Raises `DemoFailed` for everything else."""
        answer = await self.call(method, path, body)
        if answer.code is not None:
            raise DemoFailed(f"{method} {path} was answered {answer.words}")
        return answer.body

    async def _try(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[Answer, float | None]:
        """One try, and after how many seconds it is worth another."""
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.base_url}/api/v1/customer{path}"
        timeout = aiohttp.ClientTimeout(total=_CALL_S)
        try:
            async with self.http.request(method, url, json=body, headers=headers, timeout=timeout) as response:
                parsed = await response.json() if response.status != 204 else None
                answer = Answer(response.status, parsed)
                later = response.headers.get("Retry-After", "") if response.status in (429, 503) else ""
                return answer, min(float(later), _LONGEST_PAUSE_S) if later.isdecimal() else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise DemoFailed(f"{method} {path} got no answer: {type(error).__name__}") from None
