"""A Supabase project as far as the gateway sees one: keys published over HTTP, and tokens signed with them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def ec_key(name: str = "first") -> ec.EllipticCurvePrivateKey:
    """A key for ES256; the same one for the same name."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """A key for RS256; making one takes long."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def published(key: PrivateKey, kid: str) -> dict[str, Any]:
    """The public half as a JWKS has it."""
    if isinstance(key, rsa.RSAPrivateKey):
        return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": "RS256"}
    return ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": "ES256"}


def signed(key: Any, algorithm: str, claims: dict[str, Any], kid: str | None = None) -> str:
    """A JWT of `claims` as they are."""
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid is not None else None)


def user_claims(user: str, **changes: Any) -> dict[str, Any]:
    """What Supabase puts into a user's token; a change to None takes a claim out."""
    now = int(time.time())
    claims = {"sub": user, "aud": "authenticated", "role": "authenticated", "iat": now, "exp": now + 3600, **changes}
    return {name: value for name, value in claims.items() if value is not None}


@dataclass
class SupabaseProject:
    """Publishes `keys` and counts how often they were fetched. `status` other than 200 makes it fail."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    fetches: int = 0

    @property
    def issuer(self) -> str:
        return f"{self.url}/auth/v1"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The JWKS, in two pieces as a slow line would bring it."""
        self.fetches += 1
        body = json.dumps({"keys": self.keys}).encode()
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(body[:100])
        await asyncio.sleep(0.01)
        await response.write(body[100:])
        return response

    def es256(self, user: str, **changes: Any) -> str:
        """A user's token as the project signs it today."""
        return signed(ec_key(), "ES256", user_claims(user, iss=self.issuer, **changes), "ec-1")

    def rs256(self, user: str, **changes: Any) -> str:
        return signed(rsa_key(), "RS256", user_claims(user, iss=self.issuer, **changes), "rsa-1")


@pytest.fixture
async def supabase() -> AsyncIterator[SupabaseProject]:
    """A project that publishes an EC key and an RSA key."""
    project = SupabaseProject(keys=[published(ec_key(), "ec-1"), published(rsa_key(), "rsa-1")])
    app = web.Application()
    app.router.add_get("/auth/v1/.well-known/jwks.json", project.answer)
    async with TestServer(app) as server:
        project.url = str(server.make_url("")).rstrip("/")
        yield project
