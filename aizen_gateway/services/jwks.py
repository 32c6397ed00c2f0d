"""The public keys of a Supabase project: fetched when they are needed, kept, and forgotten when rotated out.

Fetching is the only part of checking a token that fails for reasons of its own, so when to fetch, how often and
what to answer meanwhile live here, apart from the checking (contract section 2, "Supabase JWT").
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from ..domain.errors import Unavailable

log = structlog.stdlib.get_logger(__name__)

# How old the keys may become before they are fetched again: about as long as a rotated-out key still opens anything.
MAX_AGE_S = 600
# Between two fetches for unknown kids, and between two attempts to renew keys that have grown old.
REFETCH_INTERVAL_S = 60
# Between two attempts while none has succeeded yet: soon, as nobody can sign in, but not once a request.
FIRST_RETRY_S = 1
FETCH_TIMEOUT_S = 5
# How long a caller waits for old keys to be renewed before it goes on with them.
RENEWAL_WAIT_S = 1

_MAX_BYTES = 1024 * 1024
_MIN_RSA_BITS = 2048
_ALGORITHMS = {("EC", "P-256"): "ES256", ("RSA", None): "RS256"}
_PUBLIC_MEMBERS = ("kty", "kid", "crv", "x", "y", "n", "e")


class JwksCache:
    """The keys behind one JWKS address. It owns the fetch under way; `aclose` ends it."""

    def __init__(self, url: str, fetch: Callable[[str], Awaitable[bytes]], clock: Callable[[], float]) -> None:
        """`fetch` returns the body of a 200 and raises for everything else; `clock` is in seconds."""
        self._url = url
        self._fetch = fetch
        self._clock = clock
        self._keys: tuple[PyJWK, ...] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at: float | None = None
        self._attempted_at: float | None = None
        self._asked_unknown_at: float | None = None
        self._reachable = True
        self._closed = False

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key for `algorithm` that `kid` names (without a kid: the only one there is), None if there is none.

        An unknown kid makes it fetch again, at most once a minute. Raises `Unavailable` when the keys cannot be
        fetched and those at hand do not answer the question.
        """
        asked = await self._load()
        if kid is None:
            fitting = [key for key in self._keys or () if key.algorithm_name == algorithm]
            return fitting[0] if len(fitting) == 1 else None
        key = self._named(kid)
        if key is None and (not asked or self._fetching is not None):
            await self._ask_for_unknown()
            key = self._named(kid)
        if key is None and not self._reachable:
            raise Unavailable("The sign-in keys cannot be reached.", retry_after=self._seconds_to_next_question())
        return key if key is not None and key.algorithm_name == algorithm else None

    async def knows(self, kid: str) -> bool:
        """Whether `kid` names one of the project's public keys. Fetches them once if that was never tried."""
        if self._keys is None and (self._fetching is not None or self._attempted_at is None):
            await asyncio.wait({self._fetch_task()})
        return self._named(kid) is not None

    async def aclose(self) -> None:
        """Cancel the fetch under way, await its end, and fetch nothing any more."""
        self._closed = True
        if self._fetching is not None:
            self._fetching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._fetching
            self._fetching = None

    async def _load(self) -> bool:
        """Have keys that are not too old. Returns whether they were fetched for this caller just now."""
        if self._keys is None:
            if self._fetching is None and not self._is_past(self._attempted_at, FIRST_RETRY_S):
                raise Unavailable("The sign-in keys cannot be reached.", retry_after=FIRST_RETRY_S)
            await asyncio.wait({self._fetch_task()})
            if self._keys is None:
                raise Unavailable("The sign-in keys cannot be reached.", retry_after=FIRST_RETRY_S)
            return True
        if self._is_past(self._fetched_at, MAX_AGE_S) and (
            self._fetching is not None or self._is_past(self._attempted_at, REFETCH_INTERVAL_S)
        ):
            await asyncio.wait({self._fetch_task()}, timeout=RENEWAL_WAIT_S)
            return True
        return False

    async def _ask_for_unknown(self) -> None:
        if self._fetching is None:
            if not self._is_past(self._asked_unknown_at, REFETCH_INTERVAL_S):
                return
            self._asked_unknown_at = self._clock()
        await asyncio.wait({self._fetch_task()})

    def _seconds_to_next_question(self) -> int:
        asked_at = self._asked_unknown_at
        if asked_at is None:
            return FIRST_RETRY_S
        left = asked_at + REFETCH_INTERVAL_S - self._clock()
        return min(max(math.ceil(left), FIRST_RETRY_S), REFETCH_INTERVAL_S)

    def _named(self, kid: str) -> PyJWK | None:
        return next((key for key in self._keys or () if key.key_id == kid), None)

    def _is_past(self, moment: float | None, seconds: float) -> bool:
        """Whether `moment` is that long ago, or never was, or lies ahead because the clock was set back."""
        return moment is None or not 0 <= self._clock() - moment < seconds

    def _fetch_task(self) -> asyncio.Task[None]:
        """The one fetch under way, begun now if there is none: however many wait, the project is asked once."""
        if self._closed:
            raise Unavailable("The gateway is stopping.")
        if self._fetching is None:
            self._attempted_at = self._clock()
            self._fetching = asyncio.create_task(self._renew(), name="jwks-fetch")
        return self._fetching

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = parse_jwks(await self._fetch(self._url))
        except Exception as error:  # `fetch` is the caller's: whatever it raises, the keys were not to be had
            self._reachable = False
            log.warning("jwks_unreachable", url=self._url, problem=repr(error))
        else:
            self._reachable = True
            self._keys = keys
            self._fetched_at = self._clock()
            log.info("jwks_fetched", keys=len(keys))
        finally:
            self._fetching = None


def parse_jwks(body: bytes) -> tuple[PyJWK, ...]:
    """The keys in a JWKS document that may sign tokens: P-256 for ES256 and RSA of 2048 bits or more for RS256.

    Others (for encryption, of other kinds, broken ones) are left out. Raises ValueError when it is no JWKS at all.
    """
    if len(body) > _MAX_BYTES:
        raise ValueError("the JWKS document is too large")
    document = orjson.loads(body)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWKS document")
    return tuple(key for entry in document["keys"] if (key := _signing_key(entry)) is not None)


def _signing_key(entry: Any) -> PyJWK | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str | None):
        return None
    kind = (entry.get("kty"), entry.get("crv"))
    algorithm = next((name for known, name in _ALGORITHMS.items() if known == kind), None)
    operations = entry.get("key_ops", ["verify"])
    if (
        algorithm is None
        or entry.get("alg", algorithm) != algorithm
        or entry.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        return None
    try:
        key = PyJWK({name: entry[name] for name in _PUBLIC_MEMBERS if name in entry}, algorithm)
    except (PyJWTError, ValueError, TypeError, AttributeError):
        return None
    if algorithm == "RS256" and key.key.key_size < _MIN_RSA_BITS:
        return None
    return key
