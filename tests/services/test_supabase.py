"""Which Supabase JWTs are good, and when keys are fetched (contract section 2), with real keys over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import jwt
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from aizen_gateway.domain.errors import Unauthenticated, Unavailable
from aizen_gateway.services import jwks, supabase
from aizen_gateway.services.supabase import SupabaseVerifier, VerifiedToken, issuer_of, mint_token

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
USER = "6f1f4d5e-8a3b-4c2d-9e1f-0a1b2c3d4e5f"
CUSTOMER = "0d9c8b7a-6f5e-4d3c-8b2a-1f0e9d8c7b6a"

# Making RSA keys takes long; two serve all tests.
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it is to be refused
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
P384_KEY = ec.generate_private_key(ec.SECP384R1())

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def jwk(key: PrivateKey, kid: str | None, **members: Any) -> dict[str, Any]:
    public = (
        RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        if isinstance(key, rsa.RSAPrivateKey)
        else ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    )
    public.pop("key_ops", None)
    return public | ({} if kid is None else {"kid": kid}) | members


@dataclass
class Project:
    """A Supabase project as far as its JWKS goes, served over HTTP."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None
    fetches: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, _request: web.Request) -> web.Response:
        self.fetches += 1
        self.asked.set()
        await self.may_answer.wait()
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(status=self.status, body=body, content_type="application/json")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def project() -> AsyncIterator[Project]:
    """One that publishes an EC key and an RSA key."""
    project = Project(keys=[jwk(EC_KEY, "ec-1", alg="ES256", use="sig"), jwk(RSA_KEY, "rsa-1", key_ops=["verify"])])
    project.may_answer.set()
    app = web.Application()
    app.router.add_get("/auth/v1/.well-known/jwks.json", project.answer)
    async with TestServer(app) as server:
        project.url = str(server.make_url("")).rstrip("/")
        yield project
        project.may_answer.set()


@pytest.fixture
async def fetch() -> AsyncIterator[Callable[[str], Awaitable[bytes]]]:
    async with ClientSession(raise_for_status=True) as session:

        async def get(url: str) -> bytes:
            async with session.get(url) as answer:
                return await answer.read()

        yield get


@pytest.fixture
async def verifier(
    project: Project, fetch: Callable[[str], Awaitable[bytes]], clock: Clock
) -> AsyncIterator[SupabaseVerifier]:
    verifier = SupabaseVerifier(SECRET, project.url, fetch, clock)
    yield verifier
    await verifier.aclose()


async def no_fetch(url: str) -> bytes:
    raise AssertionError(f"nobody asked for {url}")


@pytest.fixture
def by_secret(clock: Clock) -> SupabaseVerifier:
    """One that knows the secret alone."""
    return SupabaseVerifier(SECRET, None, no_fetch, clock)


def claims(clock: Clock, **changes: Any) -> dict[str, Any]:
    """Those of a user's access token; a change to None leaves the claim out."""
    usual = {"sub": USER, "aud": "authenticated", "role": "authenticated", "exp": int(clock.now) + 3600}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def by_hs256(payload: dict[str, Any], secret: str = SECRET, **header: Any) -> str:
    return jwt.encode(payload, secret, algorithm="HS256", headers=header)


def by_ec(payload: dict[str, Any], kid: str | None = "ec-1", key: ec.EllipticCurvePrivateKey = EC_KEY) -> str:
    return jwt.encode(payload, key, algorithm="ES256", headers={} if kid is None else {"kid": kid})


def by_rsa(payload: dict[str, Any], kid: str = "rsa-1", key: rsa.RSAPrivateKey = RSA_KEY) -> str:
    return jwt.encode(payload, key, algorithm="RS256", headers={"kid": kid})


def encoded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: dict[str, Any], payload: Any, secret: bytes) -> str:
    """An HMAC token of anything at all, with what no library would make."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


async def refused(verifier: SupabaseVerifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await verifier.verify(token)
    return caught.value.message


# Who is calling


async def test_a_users_token_by_secret_names_the_user(by_secret: SupabaseVerifier, clock: Clock) -> None:
    token = await by_secret.verify(by_hs256(claims(clock, email="ann@example.com")))
    assert token == VerifiedToken(
        subject=USER, is_service=False, expires_at=int(clock.now) + 3600, email="ann@example.com"
    )


@pytest.mark.parametrize("sign", [by_ec, by_rsa])
async def test_a_users_token_by_published_key_names_the_user(
    verifier: SupabaseVerifier, clock: Clock, sign: Callable[[dict[str, Any]], str]
) -> None:
    assert (await verifier.verify(sign(claims(clock)))).subject == USER


async def test_a_subject_in_upper_case_is_the_same_user(by_secret: SupabaseVerifier, clock: Clock) -> None:
    assert (await by_secret.verify(by_hs256(claims(clock, sub=USER.upper())))).subject == USER


@pytest.mark.parametrize("subject", [None, "", "ann", 7, f"{{{USER}}}", USER.replace("-", ""), f"urn:uuid:{USER}"])
async def test_a_user_without_a_uuid_is_refused(by_secret: SupabaseVerifier, clock: Clock, subject: Any) -> None:
    await refused(by_secret, by_hs256(claims(clock, sub=subject)))


async def test_a_service_token_needs_no_audience_and_no_subject(by_secret: SupabaseVerifier, clock: Clock) -> None:
    token = await by_secret.verify(by_hs256(claims(clock, role="service_role", aud=None, sub=None)))
    assert token == VerifiedToken(subject=None, is_service=True, expires_at=int(clock.now) + 3600)


async def test_a_service_names_no_customer_by_its_token(by_secret: SupabaseVerifier, clock: Clock) -> None:
    metadata = {"customer_id": CUSTOMER, "customer_role": "owner"}
    token = await by_secret.verify(by_hs256(claims(clock, role="service_role", sub="analyst", app_metadata=metadata)))
    assert (token.subject, token.is_service, token.names_customer, token.customer_id) == ("analyst", True, False, None)


@pytest.mark.parametrize("role", ["anon", ["service_role"], 1, {}])
async def test_an_anon_token_and_a_role_that_is_no_text_are_refused(
    by_secret: SupabaseVerifier, clock: Clock, role: Any
) -> None:
    await refused(by_secret, by_hs256(claims(clock, role=role)))


@pytest.mark.parametrize("audience", ["authenticated", ["other", "authenticated"]])
async def test_the_audience_may_be_a_text_or_a_list(by_secret: SupabaseVerifier, clock: Clock, audience: Any) -> None:
    assert (await by_secret.verify(by_hs256(claims(clock, aud=audience)))).subject == USER


@pytest.mark.parametrize("audience", [None, "anon", "", [], ["other"], "authenticated2", 1, {"authenticated": 1}])
async def test_another_audience_is_refused(by_secret: SupabaseVerifier, clock: Clock, audience: Any) -> None:
    await refused(by_secret, by_hs256(claims(clock, aud=audience)))


@pytest.mark.parametrize("email", [7, "", "x" * 321, ["ann@example.com"]])
async def test_an_odd_email_is_left_out(by_secret: SupabaseVerifier, clock: Clock, email: Any) -> None:
    assert (await by_secret.verify(by_hs256(claims(clock, email=email)))).email is None


# Customer and role


@pytest.mark.parametrize(
    ("metadata", "meant"),
    [
        ({"customer_id": CUSTOMER, "customer_role": "admin"}, (True, UUID(CUSTOMER), "admin")),
        ({"customer_id": CUSTOMER.upper(), "customer_role": "admin"}, (True, UUID(CUSTOMER), "admin")),
        ({"customer_id": CUSTOMER, "customer_role": "emperor"}, (True, UUID(CUSTOMER), "emperor")),
        ({"customer_id": "not-a-uuid", "customer_role": "admin"}, (True, None, "admin")),
        ({"customer_id": 7, "customer_role": "admin"}, (True, None, "admin")),
        ({"customer_id": CUSTOMER, "customer_role": 7}, (True, UUID(CUSTOMER), None)),
        ({"customer_id": CUSTOMER}, (False, None, None)),
        ({"customer_role": "admin"}, (False, None, None)),
        ({"customer_id": CUSTOMER, "customer_role": None}, (False, None, None)),
        ({"customer_id": None, "customer_role": "admin"}, (False, None, None)),
        ({}, (False, None, None)),
        ([CUSTOMER, "admin"], (False, None, None)),
    ],
)
async def test_the_customer_counts_when_both_claims_are_there_and_is_marked_when_it_makes_no_sense(
    by_secret: SupabaseVerifier, clock: Clock, metadata: Any, meant: tuple[bool, UUID | None, str | None]
) -> None:
    token = await by_secret.verify(by_hs256(claims(clock, app_metadata=metadata)))
    assert (token.names_customer, token.customer_id, token.customer_role) == meant


async def test_what_a_user_may_write_of_themselves_names_no_customer(by_secret: SupabaseVerifier, clock: Clock) -> None:
    own = {"customer_id": CUSTOMER, "customer_role": "owner"}
    token = await by_secret.verify(by_hs256(claims(clock, user_metadata=own, **own)))
    assert not token.names_customer


# Times


async def test_a_token_without_a_sensible_end_is_refused(by_secret: SupabaseVerifier, clock: Clock) -> None:
    for end in (None, "soon", str(int(clock.now) + 60), True, [int(clock.now) + 60], 1e300, 10**18):
        await refused(by_secret, by_hs256(claims(clock, exp=end)))
    await refused(by_secret, by_hs256(claims(clock, role="service_role", exp=None)))
    await refused(by_secret, by_hand({"alg": "HS256"}, b'{"role":"service_role","exp":NaN}', SECRET.encode()))


async def test_ten_seconds_of_leeway_are_given_and_no_more(by_secret: SupabaseVerifier, clock: Clock) -> None:
    end = int(clock.now)
    token = by_hs256(claims(clock, exp=end))
    clock.now = end + 9.9
    assert (await by_secret.verify(token)).expires_at == end
    clock.now = end + 10
    assert "expired" in await refused(by_secret, token)


async def test_a_token_that_begins_later_is_refused_beyond_the_leeway(
    by_secret: SupabaseVerifier, clock: Clock
) -> None:
    begin = int(clock.now) + 60
    token = by_hs256(claims(clock, nbf=begin))
    await refused(by_secret, token)
    clock.now = begin - 10
    assert (await by_secret.verify(token)).subject == USER
    await refused(by_secret, by_hs256(claims(clock, nbf="now")))


@pytest.mark.parametrize("issued", [4_000_000_000, 0, "yesterday"])
async def test_when_it_was_issued_is_no_reason_to_refuse(
    by_secret: SupabaseVerifier, clock: Clock, issued: Any
) -> None:
    token = by_hand({"alg": "HS256"}, claims(clock, iat=issued), SECRET.encode())
    assert (await by_secret.verify(token)).subject == USER


# Issuer


async def test_the_issuer_must_be_the_project_when_there_is_one(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    right = f"{project.url}/auth/v1"
    assert (await verifier.verify(by_hs256(claims(clock, iss=right)))).subject == USER
    assert (await verifier.verify(by_hs256(claims(clock)))).subject == USER
    for wrong in ("supabase", f"{right}/", project.url, "https://other.supabase.co/auth/v1"):
        await refused(verifier, by_hs256(claims(clock, iss=wrong)))
        await refused(verifier, by_hs256(claims(clock, iss=wrong, role="service_role")))
    await refused(verifier, by_hand({"alg": "HS256"}, claims(clock) | {"iss": None}, SECRET.encode()))
    await refused(verifier, by_hand({"alg": "HS256"}, claims(clock) | {"iss": [right]}, SECRET.encode()))


async def test_a_final_slash_of_the_project_address_does_not_count(clock: Clock) -> None:
    verifier = SupabaseVerifier(SECRET, "https://ref.supabase.co/", no_fetch, clock)
    token = by_hs256(claims(clock, iss="https://ref.supabase.co/auth/v1"))
    assert (await verifier.verify(token)).subject == USER


async def test_without_a_project_address_any_issuer_will_do(by_secret: SupabaseVerifier, clock: Clock) -> None:
    assert (await by_secret.verify(by_hs256(claims(clock, iss="supabase")))).subject == USER


# Signatures and algorithms


async def test_another_secret_is_refused(by_secret: SupabaseVerifier, clock: Clock) -> None:
    await refused(by_secret, by_hs256(claims(clock), secret=SECRET[::-1]))


async def test_a_changed_token_is_refused(by_secret: SupabaseVerifier, clock: Clock) -> None:
    header, _, signature = by_hs256(claims(clock)).split(".")
    await refused(by_secret, f"{header}.{encoded(claims(clock, role='service_role'))}.{signature}")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, "HS512", "ES384", "PS256", ["HS256"], 1])
async def test_no_signature_and_other_algorithms_are_refused(
    verifier: SupabaseVerifier, clock: Clock, algorithm: Any
) -> None:
    unsigned = f"{encoded({'alg': algorithm, 'typ': 'JWT'})}.{encoded(claims(clock))}."
    await refused(verifier, unsigned)
    await refused(verifier, by_hand({"alg": algorithm}, claims(clock), SECRET.encode()))
    await refused(verifier, by_hand({"alg": algorithm, "kid": "ec-1"}, claims(clock), SECRET.encode()))


async def test_hs512_by_the_right_secret_is_refused(by_secret: SupabaseVerifier, clock: Clock) -> None:
    await refused(by_secret, jwt.encode(claims(clock), SECRET + SECRET, algorithm="HS512"))


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
async def test_hs256_with_the_kid_of_a_public_key_is_refused_though_the_secret_is_right(
    verifier: SupabaseVerifier, clock: Clock, kid: str
) -> None:
    await refused(verifier, by_hs256(claims(clock), kid=kid))


async def test_hs256_with_a_kid_of_its_own_is_taken(verifier: SupabaseVerifier, project: Project, clock: Clock) -> None:
    assert (await verifier.verify(by_hs256(claims(clock), kid="legacy"))).subject == USER
    assert (await verifier.verify(by_hs256(claims(clock, sub=CUSTOMER), kid="legacy"))).subject == CUSTOMER
    assert project.fetches == 1


async def test_a_public_key_used_as_a_secret_is_refused(verifier: SupabaseVerifier, clock: Clock) -> None:
    for key in (RSA_KEY, EC_KEY):
        public = key.public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for secret in (pem, pem.strip(), der):
            for header in ({"alg": "HS256", "kid": "rsa-1"}, {"alg": "HS256"}, {"alg": "RS256", "kid": "rsa-1"}):
                await refused(verifier, by_hand(header, claims(clock), secret))


async def test_a_key_is_good_for_its_own_algorithm_alone(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await refused(verifier, by_ec(claims(clock), kid="rsa-1"))
    await refused(verifier, by_rsa(claims(clock), kid="ec-1"))
    await refused(verifier, by_ec(claims(clock), key=OTHER_EC_KEY))
    assert project.fetches == 1


async def test_without_the_secret_hs256_is_refused(
    project: Project, fetch: Callable[[str], Awaitable[bytes]], clock: Clock
) -> None:
    verifier = SupabaseVerifier(None, project.url, fetch, clock)
    for secret in (SECRET, "", "None"):
        await refused(verifier, by_hand({"alg": "HS256"}, claims(clock), secret.encode()))
    assert (await verifier.verify(by_ec(claims(clock)))).subject == USER
    await verifier.aclose()


async def test_without_a_project_address_public_key_tokens_are_refused(
    by_secret: SupabaseVerifier, clock: Clock
) -> None:
    await refused(by_secret, by_ec(claims(clock)))


async def test_with_neither_secret_nor_address_there_is_no_verifier() -> None:
    with pytest.raises(ValueError, match="needed"):
        SupabaseVerifier(None, None, no_fetch)


@pytest.mark.parametrize(
    "garbage",
    [
        "", ".", "..", "...", "a.b.c", "eyJ", "Bearer x", "\ud800.x.y", "é.é.é", "\0", "e30.e30.", "bnVsbA.e30.x",
        "x" * 16384, "[" * 5000,
    ],
)  # fmt: skip
async def test_what_is_no_jwt_is_refused(verifier: SupabaseVerifier, project: Project, garbage: str) -> None:
    await refused(verifier, garbage)
    assert project.fetches == 0


@pytest.mark.parametrize("payload", [b"[]", b"null", b"7", b"", b"{", b"\xff", b"[" * 4000, b'"' + b"a" * 100])
async def test_a_signed_payload_that_is_no_object_is_refused(by_secret: SupabaseVerifier, payload: bytes) -> None:
    await refused(by_secret, by_hand({"alg": "HS256"}, payload, SECRET.encode()))


@pytest.mark.parametrize("header", [{"kid": 7}, {"kid": None}, {"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}])
async def test_a_header_that_asks_for_more_is_refused(
    verifier: SupabaseVerifier, clock: Clock, header: dict[str, Any]
) -> None:
    await refused(verifier, by_hand({"alg": "HS256"} | header, claims(clock), SECRET.encode()))


async def test_a_token_over_16_kib_is_refused_however_good(by_secret: SupabaseVerifier, clock: Clock) -> None:
    small = by_hs256(claims(clock, pad=""))
    room = (supabase.MAX_TOKEN_BYTES - len(small)) * 3 // 4
    assert (await by_secret.verify(by_hs256(claims(clock, pad="x" * (room - 8))))).subject == USER
    await refused(by_secret, by_hs256(claims(clock, pad="x" * (room + 8))))


# Fetching keys


async def test_keys_are_fetched_once_and_kept(verifier: SupabaseVerifier, project: Project, clock: Clock) -> None:
    for number in range(5):
        await verifier.verify(by_ec(claims(clock, nonce=number)))
        await verifier.verify(by_rsa(claims(clock, nonce=number)))
    assert project.fetches == 1


async def test_tokens_by_secret_need_no_keys(verifier: SupabaseVerifier, project: Project, clock: Clock) -> None:
    await verifier.verify(by_hs256(claims(clock)))
    assert project.fetches == 0


async def test_concurrent_callers_share_one_fetch(verifier: SupabaseVerifier, project: Project, clock: Clock) -> None:
    project.may_answer.clear()
    callers = [asyncio.create_task(verifier.verify(by_ec(claims(clock, nonce=number)))) for number in range(20)]
    await project.asked.wait()
    project.may_answer.set()
    assert {token.subject for token in await asyncio.gather(*callers)} == {USER}
    assert project.fetches == 1


async def test_a_caller_who_leaves_does_not_take_the_fetch_along(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    project.may_answer.clear()
    leaver = asyncio.create_task(verifier.verify(by_ec(claims(clock))))
    await project.asked.wait()
    stayer = asyncio.create_task(verifier.verify(by_ec(claims(clock, nonce=1))))
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    project.may_answer.set()
    assert (await stayer).subject == USER
    assert project.fetches == 1


async def test_an_unknown_kid_fetches_again_at_most_once_a_minute(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await verifier.verify(by_ec(claims(clock)))
    project.keys.append(jwk(OTHER_EC_KEY, "ec-2"))
    # The first fetch does not count: a rotation right after it is seen at once.
    assert (await verifier.verify(by_ec(claims(clock), "ec-2", OTHER_EC_KEY))).subject == USER
    assert project.fetches == 2

    project.keys.append(jwk(OTHER_EC_KEY, "ec-3"))
    for number in range(20):
        await refused(verifier, by_ec(claims(clock, nonce=number), "ec-3", OTHER_EC_KEY))
    clock.now += 59
    await refused(verifier, by_ec(claims(clock), "ec-3", OTHER_EC_KEY))
    assert project.fetches == 2

    clock.now += 1
    assert (await verifier.verify(by_ec(claims(clock), "ec-3", OTHER_EC_KEY))).subject == USER
    assert project.fetches == 3


async def test_the_first_fetch_answers_for_the_token_that_caused_it(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await refused(verifier, by_ec(claims(clock), "nobody"))
    assert project.fetches == 1


async def test_concurrent_unknown_kids_share_one_fetch(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await verifier.verify(by_ec(claims(clock)))
    answers = await asyncio.gather(
        *(verifier.verify(by_ec(claims(clock), f"unknown-{number}")) for number in range(20)), return_exceptions=True
    )
    assert all(isinstance(answer, Unauthenticated) for answer in answers)
    assert project.fetches == 2


async def test_a_clock_set_back_does_not_stop_fetching(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await verifier.verify(by_ec(claims(clock)))
    await refused(verifier, by_ec(claims(clock), "unknown"))
    clock.now -= 86_400
    project.keys.append(jwk(OTHER_EC_KEY, "ec-2"))
    assert (await verifier.verify(by_ec(claims(clock), "ec-2", OTHER_EC_KEY))).subject == USER


async def test_a_token_without_a_kid_is_checked_with_the_only_key_of_its_kind(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    assert (await verifier.verify(by_ec(claims(clock), kid=None))).subject == USER
    project.keys.append(jwk(OTHER_EC_KEY, "ec-2"))
    clock.now += jwks.MAX_AGE_S
    await refused(verifier, by_ec(claims(clock, nonce=1), kid=None))


async def test_a_rotated_out_key_dies_within_ten_minutes_and_its_remembered_tokens_with_it(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    token = by_ec(claims(clock))
    await verifier.verify(token)
    project.keys[:] = [jwk(OTHER_EC_KEY, "ec-2")]
    clock.now += jwks.MAX_AGE_S - 1
    assert (await verifier.verify(token)).subject == USER
    clock.now += 1
    await refused(verifier, token)
    await refused(verifier, by_ec(claims(clock)))
    assert (await verifier.verify(by_ec(claims(clock), "ec-2", OTHER_EC_KEY))).subject == USER


async def test_a_kid_given_to_another_key_ends_the_tokens_of_the_old_one(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    token = by_ec(claims(clock))
    await verifier.verify(token)
    project.keys[:] = [jwk(OTHER_EC_KEY, "ec-1")]
    clock.now += jwks.MAX_AGE_S
    await refused(verifier, token)


async def test_unreachable_keys_with_none_at_hand_are_unavailable_until_they_can_be_reached(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    project.status = 500
    token = by_ec(claims(clock))
    for _ in range(5):
        with pytest.raises(Unavailable) as caught:
            await verifier.verify(token)
        assert caught.value.retry_after == 1
    assert project.fetches == 1
    project.status = 200
    clock.now += jwks.FIRST_RETRY_S
    assert (await verifier.verify(token)).subject == USER
    assert project.fetches == 2


async def test_a_project_that_nobody_answers_for_is_unavailable_but_the_secret_still_works(
    fetch: Callable[[str], Awaitable[bytes]], clock: Clock
) -> None:
    async with TestServer(web.Application()) as server:
        gone = str(server.make_url("")).rstrip("/")
    verifier = SupabaseVerifier(SECRET, gone, fetch, clock)
    with pytest.raises(Unavailable):
        await verifier.verify(by_ec(claims(clock)))
    assert (await verifier.verify(by_hs256(claims(clock), kid="legacy"))).subject == USER
    await verifier.aclose()


async def test_keys_at_hand_go_on_working_while_the_project_is_unreachable(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await verifier.verify(by_ec(claims(clock)))
    project.status = 503
    clock.now += jwks.MAX_AGE_S
    for number in range(5):
        assert (await verifier.verify(by_ec(claims(clock, nonce=number)))).subject == USER
    assert project.fetches == 2
    clock.now += jwks.REFETCH_INTERVAL_S
    assert (await verifier.verify(by_rsa(claims(clock)))).subject == USER
    assert project.fetches == 3


async def test_an_unknown_kid_while_the_project_is_unreachable_is_unavailable_not_wrong(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await verifier.verify(by_ec(claims(clock)))
    project.status = 503
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await verifier.verify(by_ec(claims(clock), "ec-2", OTHER_EC_KEY))
        assert caught.value.retry_after == 60
    assert project.fetches == 2


async def test_old_keys_are_used_when_renewing_them_takes_long(
    verifier: SupabaseVerifier, project: Project, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "RENEWAL_WAIT_S", 0.01)
    await verifier.verify(by_ec(claims(clock)))
    project.may_answer.clear()
    clock.now += jwks.MAX_AGE_S
    assert (await verifier.verify(by_ec(claims(clock, nonce=1)))).subject == USER
    assert project.fetches == 2


async def test_a_fetch_that_takes_too_long_counts_as_unreachable(
    verifier: SupabaseVerifier, project: Project, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.01)
    project.may_answer.clear()
    with pytest.raises(Unavailable):
        await verifier.verify(by_ec(claims(clock)))


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b'{"keys": null}', b"\xff", b" " * (1024 * 1024 + 1), b"[" * 5000],
)
async def test_a_malformed_answer_counts_as_unreachable(
    verifier: SupabaseVerifier, project: Project, clock: Clock, body: bytes
) -> None:
    project.body = body
    with pytest.raises(Unavailable):
        await verifier.verify(by_ec(claims(clock)))


async def test_a_malformed_answer_does_not_replace_the_keys_at_hand(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    await verifier.verify(by_ec(claims(clock)))
    project.body = b"<html>"
    clock.now += jwks.MAX_AGE_S
    assert (await verifier.verify(by_ec(claims(clock, nonce=1)))).subject == USER


async def test_a_project_that_publishes_no_keys_refuses_them_all(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    project.keys.clear()
    await refused(verifier, by_ec(claims(clock)))
    assert (await verifier.verify(by_hs256(claims(clock), kid="ec-1"))).subject == USER


async def test_keys_that_may_not_sign_are_ignored_and_those_beside_them_work(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    project.keys[:0] = [
        jwk(EC_KEY, "for-encryption", use="enc"),
        jwk(EC_KEY, "for-signing-alone", key_ops=["sign"]),
        jwk(EC_KEY, "odd-operations", key_ops="verify"),
        jwk(EC_KEY, "other-algorithm", alg="ES384"),
        jwk(EC_KEY, "no-curve", crv=None),
        jwk(EC_KEY, "not-a-point", x="AAAA"),
        jwk(EC_KEY, "not-text", x=7),
        jwk(P384_KEY, "other-curve"),
        jwk(RSA_KEY, "pss", alg="PS256"),
        jwk(SMALL_RSA_KEY, "small"),
        jwk(RSA_KEY, "no-modulus", n=""),
        {"kty": "oct", "kid": "symmetric", "k": encoded(SECRET.encode()), "alg": "HS256"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "edwards", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": ["EC"], "kid": "unhashable"},
        {"kid": "empty"},
        jwk(EC_KEY, None) | {"kid": 7},
        None,  # type: ignore[list-item]
        "text",  # type: ignore[list-item]
    ]
    assert (await verifier.verify(by_ec(claims(clock)))).subject == USER
    assert (await verifier.verify(by_rsa(claims(clock)))).subject == USER
    for kid in ("for-encryption", "for-signing-alone", "odd-operations", "other-algorithm", "not-a-point"):
        await refused(verifier, by_ec(claims(clock), kid))
    for kid in ("pss", "no-modulus"):
        await refused(verifier, by_rsa(claims(clock), kid))
    await refused(verifier, by_hand({"alg": "RS256", "kid": "symmetric"}, claims(clock), SECRET.encode()))
    assert len(jwks.parse_jwks(json.dumps({"keys": project.keys}).encode())) == 2


async def test_a_published_private_key_is_read_as_its_public_half(clock: Clock) -> None:
    private = ECAlgorithm.to_jwk(EC_KEY, as_dict=True) | {"kid": "ec-1", "key_ops": ["sign", "verify"]}
    (key,) = jwks.parse_jwks(json.dumps({"keys": [private]}).encode())
    assert isinstance(key.key, ec.EllipticCurvePublicKey)


async def test_closing_ends_the_fetch_under_way(verifier: SupabaseVerifier, project: Project, clock: Clock) -> None:
    project.may_answer.clear()
    caller = asyncio.create_task(verifier.verify(by_ec(claims(clock))))
    await project.asked.wait()
    await verifier.aclose()
    with pytest.raises(Unavailable):
        await caller
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "jwks-fetch"]
    with pytest.raises(Unavailable):
        await verifier.verify(by_ec(claims(clock)))
    assert project.fetches == 1


# Remembered tokens


async def test_a_remembered_token_still_ends_with_its_exp(
    verifier: SupabaseVerifier, project: Project, clock: Clock
) -> None:
    for token in (by_hs256(claims(clock, exp=int(clock.now) + 60)), by_ec(claims(clock, exp=int(clock.now) + 60))):
        start = clock.now
        first = await verifier.verify(token)
        assert await verifier.verify(token) is first
        clock.now = start + 71
        await refused(verifier, token)
        clock.now = start


async def test_a_refused_token_is_not_remembered(by_secret: SupabaseVerifier, clock: Clock) -> None:
    token = by_hs256(claims(clock, nbf=int(clock.now) + 60))
    await refused(by_secret, token)
    clock.now += 60
    assert (await by_secret.verify(token)).subject == USER


async def test_the_least_recently_used_token_is_forgotten_first(
    by_secret: SupabaseVerifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supabase.MAX_CACHED_TOKENS == 10_000
    monkeypatch.setattr(supabase, "MAX_CACHED_TOKENS", 2)
    one, two, three = (by_hs256(claims(clock, nonce=number)) for number in range(3))
    first, second = await by_secret.verify(one), await by_secret.verify(two)
    assert await by_secret.verify(one) is first
    await by_secret.verify(three)
    assert await by_secret.verify(one) is first
    assert await by_secret.verify(two) is not second


# Minting


async def test_a_minted_user_token_is_good(verifier: SupabaseVerifier, project: Project) -> None:
    token = await verifier.verify(
        mint_token(
            SECRET, user=USER, customer=CUSTOMER, role="viewer", service=False, ttl=60, issuer=issuer_of(project.url)
        )
    )
    assert (token.subject, token.is_service) == (USER, False)
    assert (token.names_customer, token.customer_id, token.customer_role) == (True, UUID(CUSTOMER), "viewer")


async def test_a_minted_service_token_is_good(verifier: SupabaseVerifier) -> None:
    minted = mint_token(SECRET, user=None, customer=None, role=None, service=True, ttl=60, issuer=None)
    assert (await verifier.verify(minted)).is_service


@pytest.mark.parametrize(
    "changes",
    [
        {"ttl": 0},
        {"user": None},
        {"user": "ann"},
        {"customer": None},
        {"role": None},
        {"role": "emperor"},
        {"customer": "acme"},
    ],
)
def test_a_token_that_could_never_be_accepted_is_not_minted(changes: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {
        "user": USER, "customer": CUSTOMER, "role": "admin", "service": False, "ttl": 60, "issuer": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"\w"):
        mint_token(SECRET, **(wanted | changes))
