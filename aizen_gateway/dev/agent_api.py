"""The device API of the gateway (contract section 3) as the agent calls it: one method a call, and who am I.

What comes back is one of three things, and the difference is what keeps a result from being lost: an answer, the
gateway's own refusal (`GatewayRefused`), or something that is worth another try (`GatewayUnavailable`). A captive
portal's page or a balancer's error is never taken for the gateway's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aiohttp

from aizen_gateway import __version__

_MAX_ANSWER = 2 * 1024 * 1024
_CHUNK = 64 * 1024
_CALL_TIMEOUT_S = 15.0
_MAX_RETRY_AFTER_S = 3600.0
_TRANSIENT = frozenset({408, 425, 429})

USER_AGENT = f"aizen-gateway-agent/{__version__}"

# Called with the name of what happened and its fields, none of them a secret.
Announce = Callable[[str, Mapping[str, object]], None]


class GatewayRefused(Exception):
    """The gateway's own final word on one call: its status and its error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class GatewayUnavailable(Exception):
    """No usable answer, or one that asks to come back; the same call may be made again.

    `retry_after_s` is what the gateway asked for, in seconds.
    """

    def __init__(self, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class NotWelcome(Exception):
    """The gateway does not know this device any more, or not yet: a person has to provision it (again)."""


@dataclass(slots=True)
class Backoff:
    """Waiting times between tries: each drawn from a range that doubles, so that a fleet does not come back at once."""

    base_s: float
    cap_s: float
    _range_s: float = field(default=0.0, init=False)

    def next(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait before the next try, at least what the gateway asked for."""
        self._range_s = min(self.cap_s, self._range_s * 2 or self.base_s)
        drawn = random.uniform(self._range_s / 2, self._range_s)
        if retry_after_s is None:
            return drawn
        asked = min(max(0.0, retry_after_s), _MAX_RETRY_AFTER_S)
        return asked + random.uniform(0, self._range_s / 2) if asked else drawn

    def reset(self) -> None:
        """The last try went well."""
        self._range_s = 0.0


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for `event` at most so long; return whether it happened, and be ready for the next time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    happened = event.is_set()
    event.clear()
    return happened


class GatewayClient:
    """One device's calls. It signs in when it has no token, and once more when the gateway refuses the one it has.

    `away_s`: seconds that a suspended device stays away. `answered` counts the calls that went well.
    """

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, device_id: str, announce: Announce, *, away_s: float
    ) -> None:
        self.answered = 0
        self._away_s = away_s
        self._announce = announce
        self._session = session
        self._root = base_url.rstrip("/") + "/api/v1/device"
        self._device_id = device_id
        self._secret: str | None = None
        self._token: str | None = None
        self._signing_in = asyncio.Lock()

    def use_secret(self, secret: str) -> None:
        """Sign in with this secret from now on."""
        self._secret = secret
        self._token = None

    async def register(self, code: str, name: str | None, metadata: Mapping[str, str]) -> dict[str, Any]:
        """`POST /register`. Raises `NotWelcome` when the code is refused or the device was never provisioned."""
        body: dict[str, Any] = {"deviceId": self._device_id, "activationCode": code, "metadata": dict(metadata)}
        if name is not None:
            body["deviceName"] = name
        try:
            answer = await self._request("POST", "/register", body)
        except GatewayRefused as refused:
            raise NotWelcome(f"registration refused: {refused}") from None
        if not isinstance(answer.get("deviceSecret"), str):
            raise GatewayUnavailable("the answer to the registration carries no secret")
        return answer

    async def sign_in(self, stale: str | None = None) -> str:
        """`POST /auth`, and return the token; one call at a time, and none when a newer token than `stale` is there.

        Raises `NotWelcome` when the secret is refused, `GatewayUnavailable` while the device is suspended.
        """
        async with self._signing_in:
            if self._token is not None and self._token != stale:
                return self._token
            self._token = None
            try:
                answer = await self._request(
                    "POST", "/auth", {"deviceId": self._device_id, "deviceSecret": self._secret}
                )
            except GatewayRefused as refused:
                if refused.code == "DEVICE_SUSPENDED":
                    raise GatewayUnavailable("the device is suspended", self._away_s) from None
                raise NotWelcome(f"sign-in refused: {refused}") from None
            token = answer.get("token")
            if not isinstance(token, str):
                raise GatewayUnavailable("the answer to the sign-in carries no token")
            self._token = token
            self._announce("signed_in", {"device_id": self._device_id})
            return token

    async def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /heartbeat`."""
        return await self._call("/heartbeat", body)

    async def claim(self, *, limit: int, visibility_timeout_ms: int, wait_ms: int) -> list[Any]:
        """`POST /commands/claim`; returns the commands as they came, possibly none."""
        body = {"limit": limit, "visibilityTimeout": visibility_timeout_ms, "waitMs": wait_ms}
        answer = await self._call("/commands/claim", body, timeout_s=wait_ms / 1000 + _CALL_TIMEOUT_S)
        commands = answer.get("commands")
        if not isinstance(commands, list):
            raise GatewayUnavailable("the answer to the claim carries no commands")
        return commands

    async def extend(self, command: UUID, claim_token: str, extension_ms: int) -> dict[str, Any]:
        """`POST /commands/{id}/extend`."""
        body = {"claimToken": claim_token, "extensionMs": extension_ms}
        return await self._call(f"/commands/{command}/extend", body)

    async def report(self, command: UUID, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /commands/{id}/result`. Only an answer that says `success` counts as taken."""
        answer = await self._call(f"/commands/{command}/result", body)
        if answer.get("success") is not True:
            raise GatewayUnavailable("the answer to the result does not say that it was taken")
        return answer

    async def release(self, command: UUID, claim_token: str) -> dict[str, Any]:
        """`POST /commands/{id}/release`."""
        return await self._call(f"/commands/{command}/release", {"claimToken": claim_token})

    async def _call(self, path: str, body: Mapping[str, Any], timeout_s: float = _CALL_TIMEOUT_S) -> dict[str, Any]:
        token = self._token or await self.sign_in()
        try:
            return await self._request("POST", path, body, token, timeout_s)
        except GatewayRefused as refused:
            if refused.status != 401:
                raise
        token = await self.sign_in(stale=token)
        try:
            return await self._request("POST", path, body, token, timeout_s)
        except GatewayRefused as refused:
            if refused.status != 401:
                raise
            raise GatewayUnavailable("a token that was just issued is refused") from None

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        token: str | None = None,
        timeout_s: float = _CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if token is not None:
            headers["X-Device-Token"] = token
        data = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        try:
            async with self._session.request(
                method,
                self._root + path,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                retry_after_s = seconds(response.headers.get("Retry-After"))
                answer = _judge(response.status, await _read(response), retry_after_s)
        except TimeoutError:
            raise GatewayUnavailable(f"no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise GatewayUnavailable(f"not reached: {type(error).__name__}") from None
        self.answered += 1
        return answer


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > _MAX_ANSWER:
            raise GatewayUnavailable("the answer is larger than any of the gateway's")
    return bytes(data)


def _judge(status: int, data: bytes, retry_after_s: float | None) -> dict[str, Any]:
    """Tell an answer from a refusal, and either from what is not the gateway's word."""
    answer: Any = None
    with contextlib.suppress(ValueError):
        answer = json.loads(data) if data else {}
    if 200 <= status < 300 and isinstance(answer, dict):
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if status >= 500 or status in _TRANSIENT or not isinstance(code, str):
        what = code if isinstance(code, str) else "in a form unlike the gateway's"
        raise GatewayUnavailable(f"answered {status} {what}", retry_after_s)
    raise GatewayRefused(status, code, str(error.get("message", "")) if isinstance(error, dict) else "")


def seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds; its other form, a date, is left out, as clocks of devices are not to be trusted."""
    try:
        return float(retry_after) if retry_after is not None and retry_after.strip().isdecimal() else None
    except ValueError:
        return None
