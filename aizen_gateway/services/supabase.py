"""Who a Supabase JWT says is calling, once its signature and claims have been checked (contract section 2).

What the answer means (customer, role, what may be done) is for the caller to decide: this knows tokens alone.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

import jwt
import orjson
from jwt.exceptions import PyJWTError

from ..domain.errors import Unauthenticated
from ..domain.values import Role
from .jwks import JwksCache

LEEWAY_S = 10
MAX_TOKEN_BYTES = 16 * 1024
MAX_CACHED_TOKENS = 10_000

_SERVICE_ROLE = "service_role"
_ANONYMOUS_ROLE = "anon"
_AUDIENCE = "authenticated"
_PUBLIC_KEY_ALGORITHMS = ("ES256", "RS256")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_MAX_EMAIL = 320
# The year 10000: a moment beyond it cannot be written as the contract writes times.
_END_OF_CALENDAR = 253_402_300_800


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What a good token says. `expires_at` is its `exp`, in seconds since the epoch.

    `subject` is a user's UUID in lower case; a service's `sub` may be anything or missing.

    `names_customer` tells that `app_metadata` has both `customer_id` and `customer_role`, so that these count and the
    membership table does not. Then `customer_id` is None if it is no UUID and `customer_role` None if it is no text:
    such a customer or role does not exist, and the answer is `NO_CUSTOMER`. Without `names_customer` both are None
    and the membership table decides. A service names no customer here: it does so with `X-Customer-ID`.
    """

    subject: str | None
    is_service: bool
    expires_at: float
    names_customer: bool = False
    customer_id: UUID | None = None
    customer_role: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class _Cached:
    token: VerifiedToken
    kid: str | None
    algorithm: str
    key: jwt.PyJWK | None


def issuer_of(supabase_url: str) -> str:
    """The `iss` of a project's tokens, from its address with or without a final slash."""
    return f"{supabase_url.rstrip('/')}/auth/v1"


class SupabaseVerifier:
    """Checks Supabase JWTs, with the project's HS256 secret, its published keys, or both.

    Good tokens are remembered by a hash, so that one in use costs a lookup; a remembered one ends with its `exp`,
    and with its key when the project no longer publishes that.
    """

    def __init__(
        self,
        jwt_secret: str | None,
        supabase_url: str | None,
        fetch: Callable[[str], Awaitable[bytes]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`fetch` gets a URL and returns the body of a 200, raising for all else; `clock` is seconds since the epoch.

        Raises ValueError without a secret and without an address: nothing could be checked.
        """
        if not jwt_secret and not supabase_url:
            raise ValueError("a JWT secret or a Supabase URL is needed")
        self._secret = jwt_secret
        self._issuer = issuer_of(supabase_url) if supabase_url else None
        self._keys = JwksCache(f"{self._issuer}/.well-known/jwks.json", fetch, clock) if supabase_url else None
        self._clock = clock
        self._jws = jwt.PyJWS(algorithms=["HS256", *_PUBLIC_KEY_ALGORITHMS])
        self._cache: OrderedDict[bytes, _Cached] = OrderedDict()

    async def verify(self, token: str) -> VerifiedToken:
        """Check `token` and say who it is.

        Raises `Unauthenticated` for a token that is not good, and `Unavailable` when that cannot be told because the
        project's keys are out of reach.

        `exp` and `nbf` have 10 s of leeway. `iat` is not looked at: a token from a clock that runs ahead is no less
        genuine, and `exp` and `nbf` bound its life.
        """
        if not token.isascii() or len(token) > MAX_TOKEN_BYTES:
            _refuse("The token is not a JWT that this gateway takes.")
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._cache.get(digest)
        if cached is not None:
            if await self._still_holds(cached):
                if digest in self._cache:
                    self._cache.move_to_end(digest)
                return cached.token
            self._cache.pop(digest, None)
        checked = await self._check(token)
        self._cache[digest] = checked
        while len(self._cache) > MAX_CACHED_TOKENS:
            self._cache.popitem(last=False)
        return checked.token

    async def aclose(self) -> None:
        """End the fetch of keys that may be under way."""
        if self._keys is not None:
            await self._keys.aclose()

    async def _still_holds(self, cached: _Cached) -> bool:
        if cached.key is not None and self._keys is not None:
            # Keys are made anew with each fetch, so after one every token proves itself again.
            return await self._keys.find(cached.kid, cached.algorithm) is cached.key and self._is_alive(cached)
        return self._is_alive(cached)

    def _is_alive(self, cached: _Cached) -> bool:
        return cached.token.expires_at > self._clock() - LEEWAY_S

    async def _check(self, token: str) -> _Cached:
        try:
            header = self._jws.get_unverified_header(token)
        except PyJWTError:
            _refuse("The token is not a JWT.")
        kid, algorithm = header.get("kid"), header.get("alg")
        proof: str | jwt.PyJWK | None = None
        if algorithm == "HS256":
            await self._refuse_a_public_key_as_secret(kid)
            proof = self._secret
        elif algorithm in _PUBLIC_KEY_ALGORITHMS and self._keys is not None:
            proof = await self._keys.find(kid, algorithm)
        if algorithm is None or proof is None:
            _refuse("The token is signed with a key that is not this project's.")
        try:
            payload = self._jws.decode_complete(token, proof, algorithms=[algorithm])["payload"]
            claims = orjson.loads(payload)
        except (PyJWTError, orjson.JSONDecodeError):
            _refuse("The token's signature or form is not right.")
        if not isinstance(claims, dict):
            _refuse("The token's claims are not an object.")
        return _Cached(self._read(claims), kid, algorithm, proof if isinstance(proof, jwt.PyJWK) else None)

    async def _refuse_a_public_key_as_secret(self, kid: str | None) -> None:
        if kid is not None and self._keys is not None and await self._keys.knows(kid):
            _refuse("The token's algorithm is not that of its key.")

    def _read(self, claims: Mapping[str, Any]) -> VerifiedToken:
        expires_at = self._check_times(claims)
        if self._issuer is not None and claims.get("iss", self._issuer) != self._issuer:
            _refuse("The token is from another issuer.")
        role = claims.get("role")
        if role == _ANONYMOUS_ROLE or not isinstance(role, str | None):
            _refuse("The token's role may not sign in.")
        subject = claims.get("sub")
        if role == _SERVICE_ROLE:
            return VerifiedToken(subject if isinstance(subject, str) else None, True, expires_at)
        audience = claims.get("aud")
        if audience != _AUDIENCE and not (isinstance(audience, list) and _AUDIENCE in audience):
            _refuse("The token is meant for another audience.")
        if not isinstance(subject, str) or not _UUID.fullmatch(subject):
            _refuse("The token names no user.")
        named, customer_id, customer_role = _customer(claims.get("app_metadata"))
        email = claims.get("email")
        shown = email if isinstance(email, str) and 0 < len(email) <= _MAX_EMAIL else None
        return VerifiedToken(subject.lower(), False, expires_at, named, customer_id, customer_role, shown)

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        now = self._clock()
        expires_at = _moment(claims.get("exp"))
        if expires_at is None:
            _refuse("The token says no time at which it ends.")
        if expires_at <= now - LEEWAY_S:
            _refuse("The token has expired.")
        if "nbf" in claims:
            begins_at = _moment(claims["nbf"])
            if begins_at is None or begins_at > now + LEEWAY_S:
                _refuse("The token is not valid yet.")
        return expires_at


def _refuse(message: str) -> NoReturn:
    raise Unauthenticated(message) from None


def _moment(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _END_OF_CALENDAR:
        return None
    return float(value)


def _customer(app_metadata: object) -> tuple[bool, UUID | None, str | None]:
    """Whether both claims are there (null is not), and what they say as far as it makes sense."""
    if not isinstance(app_metadata, dict):
        return False, None, None
    customer, role = app_metadata.get("customer_id"), app_metadata.get("customer_role")
    if customer is None or role is None:
        return False, None, None
    well_formed = isinstance(customer, str) and _UUID.fullmatch(customer)
    return True, UUID(customer) if well_formed else None, role if isinstance(role, str) else None


def mint_token(
    secret: str,
    *,
    user: str | None,
    customer: str | None,
    role: str | None,
    service: bool,
    ttl: int,
    issuer: str | None,
) -> str:
    """An HS256 token such as Supabase makes, for trying things out (contract section 7, `token mint`).

    `ttl` is seconds from now; `issuer` is a whole `iss` (see `issuer_of`) or None for no such claim. Raises
    ValueError when what is asked for could never be accepted, with what is wrong in words.
    """
    if ttl <= 0:
        raise ValueError("the time to live must be positive")
    if (customer is None) != (role is None):
        raise ValueError("customer and role go together: the gateway takes both from the token or neither")
    if role is not None and role not in [*Role]:
        raise ValueError(f"the role must be one of {', '.join(Role)}")
    if not service and (user is None or not _UUID.fullmatch(user)):
        raise ValueError("a user's token needs the user's UUID")
    if customer is not None and not _UUID.fullmatch(customer):
        raise ValueError("the customer must be a UUID")
    now = int(time.time())
    claims: dict[str, Any] = {"role": _SERVICE_ROLE if service else _AUDIENCE, "iat": now, "exp": now + ttl}
    if user is not None:
        claims["sub"] = user
    if not service:
        claims["aud"] = _AUDIENCE
    if issuer is not None:
        claims["iss"] = issuer
    if customer is not None:
        claims["app_metadata"] = {"customer_id": customer, "customer_role": role}
    return jwt.encode(claims, secret, algorithm="HS256")
