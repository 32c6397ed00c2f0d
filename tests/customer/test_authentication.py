"""Who is calling the customer API (contract section 2), through a whole gateway and with real keys over real HTTP."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives import serialization

from aizen_gateway.domain.values import Role
from aizen_gateway.services.operators import Operators
from tests.support.clients import API, JWT_SECRET, Client, CustomerClient, Reply, World, expect, token_for
from tests.support.gateway import StartWorld
from tests.support.supabase import SupabaseProject, ec_key, published, rsa_key, signed, user_claims

DEVICES = f"{API}/customer/devices"


def bearer(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): value for name, value in headers.items()}}


async def asks(world: World, token: str, **headers: str) -> Reply:
    """What a caller with this token gets for the list of devices."""
    return await world.anyone().call("GET", DEVICES, headers=bearer(token, **headers))


async def sees(world: World, token: str, **headers: str) -> list[str]:
    """The ids of the devices that a caller with this token sees."""
    return [device["id"] for device in expect(await asks(world, token, **headers), 200)["devices"]]


async def all_asked(world: World, tokens: Mapping[str, str]) -> dict[str, tuple[int, str | None]]:
    answers = {}
    for name, token in tokens.items():
        reply = await asks(world, token)
        answers[name] = (reply.status, reply.code)
    return answers


@pytest.fixture
async def by_keys(start_world: StartWorld, supabase: SupabaseProject) -> World:
    """A gateway that knows the project's address and not its secret. Its members have no tokens of their own yet."""
    return await start_world(SUPABASE_URL=supabase.url, SUPABASE_JWT_SECRET="")


@pytest.fixture
async def by_both(start_world: StartWorld, supabase: SupabaseProject) -> World:
    """A gateway that knows the project's address and its secret."""
    return await start_world(SUPABASE_URL=supabase.url)


# HS256


async def test_a_user_signs_in_with_a_token_of_the_projects_secret(world: World) -> None:
    await world.owner.provision("edge-1")
    for person in (world.owner, world.admin, world.viewer):
        reply = await person.get(DEVICES)
        assert [device["id"] for device in expect(reply, 200)["devices"]] == ["edge-1"]


async def test_the_scheme_of_authorization_is_read_in_any_case(world: World) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {token_for(world.owner.user_id)}"}
        expect(await world.anyone().call("GET", DEVICES, headers=headers), 200)


def unsigned(claims: Mapping[str, Any]) -> str:
    def part(value: Mapping[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}."


@pytest.mark.filterwarnings("ignore:The HMAC key")
async def test_a_token_that_is_not_good_is_401_whatever_is_wrong_with_it(world: World) -> None:
    user, now = world.owner.user_id, int(time.time())
    good = token_for(user)
    head, body, signature = good.split(".")

    def made(**changes: Any) -> str:
        return signed(JWT_SECRET, "HS256", user_claims(user, **changes))

    tokens = {
        "no token": "",
        "no JWT": "nonsense",
        "alg none": unsigned(user_claims(user)),
        "another secret": signed("another secret that is long enough", "HS256", user_claims(user)),
        "another HMAC": signed(JWT_SECRET, "HS512", user_claims(user)),
        "a key nobody published": signed(ec_key(), "ES256", user_claims(user), "ec-1"),
        "an altered signature": f"{head}.{body}.{signature[::-1]}",
        "an altered body": f"{head}.{body[:-2]}.{signature}",
        "anonymous": made(role="anon"),
        "no audience": made(aud=None),
        "another audience": made(aud="anon"),
        "no end": made(exp=None),
        "ended": made(exp=now - 20),
        "not yet": made(nbf=now + 60),
        "an end that is no number": made(exp="tomorrow"),
        "no subject": made(sub=None),
        "a subject that is no user": made(sub="admin"),
    }
    assert await all_asked(world, tokens) == dict.fromkeys(tokens, (401, "UNAUTHENTICATED"))


async def test_a_401_names_the_scheme_and_shows_no_token(world: World) -> None:
    token = signed("another secret that is long enough", "HS256", user_claims(world.owner.user_id))
    reply = await asks(world, token)
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert token not in json.dumps(reply.body)
    assert token.rpartition(".")[2] not in json.dumps(reply.body)


async def test_clocks_may_differ_by_ten_seconds(world: World) -> None:
    now = int(time.time())
    claims = user_claims(world.owner.user_id, exp=now - 5, nbf=now + 5)
    expect(await asks(world, signed(JWT_SECRET, "HS256", claims)), 200)


async def test_authorization_of_another_form_is_401(world: World) -> None:
    token = token_for(world.owner.user_id)
    for value in ("", token, f"Basic {token}", f"Bearer{token}", f"Bearer {token} {token}", "Bearer", "Bearer \u00e9"):
        reply = await world.anyone().call("GET", DEVICES, headers={"Authorization": value})
        assert (reply.status, reply.code) == (401, "UNAUTHENTICATED"), value


async def test_a_token_in_the_query_is_no_token(world: World) -> None:
    reply = await world.anyone().get(f"{DEVICES}?token={token_for(world.owner.user_id)}")
    assert reply.status == 401


async def test_without_the_projects_address_any_issuer_is_taken(world: World) -> None:
    claims = user_claims(world.owner.user_id, iss="https://elsewhere.example/auth/v1")
    expect(await asks(world, signed(JWT_SECRET, "HS256", claims)), 200)


async def test_a_device_token_opens_nothing_of_the_customer_api_and_a_users_nothing_of_the_device_api(
    world: World,
) -> None:
    device = await world.device()
    assert (await asks(world, device.token)).status == 401
    assert (await world.anyone().get(DEVICES, X_Device_Token=device.token)).status == 401
    heartbeat = await world.owner.post(f"{API}/device/heartbeat", {"status": "online"})
    assert (heartbeat.status, heartbeat.code) == (401, "UNAUTHENTICATED")


async def test_every_call_of_both_apis_but_register_and_auth_needs_a_token(world: World) -> None:
    document = expect(await world.anyone().get("/openapi.json"), 200)
    open_to_all = []
    for path, methods in document["paths"].items():
        if not path.startswith(API):
            continue
        for method in methods:
            concrete = path.replace("{deviceId}", "edge-1").replace("{sessionId}", str(uuid4()))
            reply = await world.anyone().call(method.upper(), concrete.replace("{commandId}", str(uuid4())))
            if (reply.status, reply.code) != (401, "UNAUTHENTICATED"):
                open_to_all.append(path)
    assert open_to_all == [f"{API}/device/register", f"{API}/device/auth"]


# ES256, RS256 and the JWKS


async def test_es256_and_rs256_tokens_of_published_keys_open_the_gateway(
    by_keys: World, supabase: SupabaseProject
) -> None:
    claim = {"customer_id": by_keys.customer_id, "customer_role": "owner"}
    provision = await by_keys.anyone().call(
        "POST",
        f"{DEVICES}/provision",
        {"deviceId": "edge-1"},
        headers=bearer(supabase.es256(str(uuid4()), app_metadata=claim)),
    )
    expect(provision, 201)
    assert await sees(by_keys, supabase.es256(by_keys.owner.user_id)) == ["edge-1"]
    assert await sees(by_keys, supabase.rs256(by_keys.viewer.user_id)) == ["edge-1"]
    assert supabase.fetches == 1


async def test_a_token_with_a_wrong_algorithm_for_its_key_is_401(by_both: World, supabase: SupabaseProject) -> None:
    user = by_both.owner.user_id
    claims = user_claims(user, iss=supabase.issuer)
    pem = (
        ec_key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    # PyJWT refuses to sign with a public key, as an attacker's own code would not.
    secret_of_public = base64.b64encode(pem).decode()
    tokens = {
        "RS256 under the EC key's name": signed(rsa_key(), "RS256", claims, "ec-1"),
        "ES256 under the RSA key's name": signed(ec_key(), "ES256", claims, "rsa-1"),
        "HS256 with the secret, under a public key's name": signed(JWT_SECRET, "HS256", claims, "ec-1"),
        "HS256 with a public key for its secret": signed(secret_of_public, "HS256", claims, "ec-1"),
        "ES256 with another key": signed(ec_key("another"), "ES256", claims, "ec-1"),
        "RSASSA-PSS": signed(rsa_key(), "PS256", claims, "rsa-1"),
        "alg none": unsigned(claims),
    }
    assert await all_asked(by_both, tokens) == dict.fromkeys(tokens, (401, "UNAUTHENTICATED"))
    expect(await asks(by_both, supabase.es256(user)), 200)
    expect(await asks(by_both, token_for(user)), 200)


async def test_an_issuer_other_than_the_projects_is_401_and_none_is_taken(
    by_both: World, supabase: SupabaseProject
) -> None:
    user = by_both.owner.user_id
    issuers = {
        "none": None,
        "the project": supabase.issuer,
        "its address": supabase.url,
        "another": "https://x.example",
    }
    answers = {}
    for name, issuer in issuers.items():
        reply = await asks(by_both, signed(JWT_SECRET, "HS256", user_claims(user, iss=issuer)))
        answers[name] = reply.status
    assert answers == {"none": 200, "the project": 200, "its address": 401, "another": 401}


async def test_a_new_key_is_found_at_once_and_unknown_ones_ask_at_most_once_a_minute(
    by_keys: World, supabase: SupabaseProject
) -> None:
    user = by_keys.owner.user_id
    expect(await asks(by_keys, supabase.es256(user)), 200)
    supabase.keys.append(published(ec_key("rotated in"), "ec-2"))
    claims = user_claims(user, iss=supabase.issuer)
    expect(await asks(by_keys, signed(ec_key("rotated in"), "ES256", claims, "ec-2")), 200)
    assert supabase.fetches == 2
    for number in range(5):
        reply = await asks(by_keys, signed(ec_key("unknown"), "ES256", claims, f"unknown-{number}"))
        assert reply.status == 401
    assert supabase.fetches == 2


async def test_keys_that_cannot_be_fetched_are_503_and_come_back_when_they_can(
    by_both: World, supabase: SupabaseProject
) -> None:
    supabase.status = 500
    user = by_both.owner.user_id
    reply = await asks(by_both, supabase.es256(user))
    assert (reply.status, reply.code) == (503, "UNAVAILABLE")
    assert int(reply.headers["Retry-After"]) >= 1
    expect(await asks(by_both, token_for(user)), 200)


async def test_keys_at_hand_go_on_counting_while_the_project_is_away(by_keys: World, supabase: SupabaseProject) -> None:
    expect(await asks(by_keys, supabase.es256(by_keys.owner.user_id)), 200)
    supabase.status = 500
    expect(await asks(by_keys, supabase.rs256(by_keys.admin.user_id)), 200)


# Which customer, which role


async def test_app_metadata_with_customer_and_role_counts_over_the_membership(world: World) -> None:
    other = await world.another()
    await other.owner.provision("theirs-1")
    token = token_for(world.viewer.user_id, customer=other.customer_id, role="admin")
    assert await sees(world, token) == ["theirs-1"]
    reply = await world.anyone().call("POST", f"{DEVICES}/provision", {"deviceId": "theirs-2"}, headers=bearer(token))
    expect(reply, 201)


async def test_app_metadata_that_names_only_one_of_both_leaves_it_to_the_membership(world: World) -> None:
    other = await world.another()
    await world.owner.provision("ours-1")
    for metadata in ({"customer_id": other.customer_id}, {"customer_role": "owner"}, {}, None, "text", {"provider": 1}):
        claims = user_claims(world.viewer.user_id, app_metadata=metadata)
        token = signed(JWT_SECRET, "HS256", claims)
        assert await sees(world, token) == ["ours-1"], metadata
        reply = await world.anyone().call("POST", f"{DEVICES}/provision", {"deviceId": "new-1"}, headers=bearer(token))
        assert (reply.status, reply.code) == (403, "FORBIDDEN")


async def test_no_customer_no_known_role_and_no_such_customer_are_403_no_customer(world: World) -> None:
    user, customer = str(uuid4()), world.customer_id
    claimed = {
        "no membership": {},
        "an unknown role": {"customer_id": customer, "customer_role": "superuser"},
        "a role of other letters": {"customer_id": customer, "customer_role": "Owner"},
        "a role that is no text": {"customer_id": customer, "customer_role": ["owner"]},
        "no such customer": {"customer_id": str(uuid4()), "customer_role": "owner"},
        "a customer that is no UUID": {"customer_id": "acme", "customer_role": "owner"},
        "a customer that is a number": {"customer_id": 7, "customer_role": "owner"},
    }
    tokens = {
        name: signed(JWT_SECRET, "HS256", user_claims(user, app_metadata=metadata))
        for name, metadata in claimed.items()
    }
    assert await all_asked(world, tokens) == dict.fromkeys(tokens, (403, "NO_CUSTOMER"))


async def test_user_metadata_which_users_write_themselves_gives_nothing(world: World) -> None:
    claims = user_claims(str(uuid4()), user_metadata={"customer_id": world.customer_id, "customer_role": "owner"})
    reply = await asks(world, signed(JWT_SECRET, "HS256", claims))
    assert (reply.status, reply.code) == (403, "NO_CUSTOMER")


async def test_a_membership_that_changes_or_ends_counts_from_the_next_call_on(world: World) -> None:
    operators = Operators(world.database)
    customer, user = UUID(world.customer_id), UUID(world.admin.user_id)
    await world.admin.provision("edge-1")
    await operators.add_member(customer, user, Role.VIEWER)
    refused = await world.admin.post(f"{DEVICES}/provision", {"deviceId": "edge-2"})
    assert (refused.status, refused.code) == (403, "FORBIDDEN")
    expect(await world.admin.get(DEVICES), 200)
    await operators.remove_member(customer, user)
    gone = await world.admin.get(DEVICES)
    assert (gone.status, gone.code) == (403, "NO_CUSTOMER")


# Services


async def test_a_service_acts_for_the_customer_that_it_names(world: World) -> None:
    other = await world.another()
    await world.owner.provision("ours-1")
    await other.owner.provision("theirs-1")
    token = token_for(service=True)
    assert await sees(world, token, X_Customer_ID=world.customer_id) == ["ours-1"]
    assert await sees(world, token, X_Customer_ID=other.customer_id) == ["theirs-1"]
    assert await sees(world, token, X_Customer_ID=other.customer_id.upper()) == ["theirs-1"]


async def test_a_service_that_names_no_customer_is_400(world: World) -> None:
    token = token_for(service=True)
    customer = world.customer_id
    none_of_them = ("", "acme", customer[:-1], customer + "0", f"{customer},{uuid4()}")
    wrong: list[dict[str, str]] = [{}, *({"X_Customer_ID": given} for given in none_of_them)]
    for headers in wrong:
        reply = await asks(world, token, **headers)
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST")
        assert list(reply.fields) == ["X-Customer-ID"]


async def test_a_service_that_names_a_customer_which_does_not_exist_is_403(world: World) -> None:
    reply = await asks(world, token_for(service=True), X_Customer_ID=str(uuid4()))
    assert (reply.status, reply.code) == (403, "NO_CUSTOMER")


async def test_a_service_signs_in_by_the_projects_keys_as_well(by_keys: World, supabase: SupabaseProject) -> None:
    await Operators(by_keys.database).list_customers()
    claims = {"role": "service_role", "exp": int(time.time()) + 60, "iss": supabase.issuer}
    token = signed(rsa_key(), "RS256", claims, "rsa-1")
    assert await sees(by_keys, token, X_Customer_ID=by_keys.customer_id) == []


async def test_a_service_token_needs_an_end_like_any_other(world: World) -> None:
    for claims in ({"role": "service_role"}, {"role": "service_role", "exp": int(time.time()) - 60}):
        reply = await asks(world, signed(JWT_SECRET, "HS256", claims), X_Customer_ID=world.customer_id)
        assert (reply.status, reply.code) == (401, "UNAUTHENTICATED")


async def test_what_a_services_token_says_of_a_customer_counts_for_nothing(world: World) -> None:
    other = await world.another()
    await other.owner.provision("theirs-1")
    token = token_for(service=True, customer=other.customer_id, role="owner")
    assert await sees(world, token, X_Customer_ID=world.customer_id) == []


async def test_the_customer_header_of_a_user_counts_for_nothing(world: World) -> None:
    other = await world.another()
    await world.owner.provision("ours-1")
    for named in (other.customer_id, "nonsense"):
        assert await sees(world, token_for(world.owner.user_id), X_Customer_ID=named) == ["ours-1"]


async def test_a_service_is_in_the_audit_log_by_its_subject(world: World) -> None:
    for number, subject in enumerate((None, "analyst", "odd \u0000 \u2028 name", "x" * 3000)):
        claims = user_claims("", role="service_role", sub=subject, aud=None)
        token = signed(JWT_SECRET, "HS256", claims)
        service = CustomerClient(world.http, world.url, bearer(token, X_Customer_ID=world.customer_id))
        await service.provision(f"edge-{number}")
    records = expect(await world.owner.get(f"{API}/customer/audit"), 200)["records"]
    actors = [record["actor"] for record in reversed(records)]
    assert actors[:2] == ["service", "analyst"]
    assert actors[2].startswith("odd \ufffd")
    assert actors[3].startswith("xxx")
    assert {record["actorType"] for record in records} == {"service"}


# Roles


async def test_a_viewer_reads_everything_but_the_audit_log_and_writes_nothing(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    command = await world.owner.submit(session["id"])
    claimed = await device.claim()
    await device.report(claimed[0])
    waiting = await world.owner.submit(session["id"], "restart_service")
    await world.owner.provision("edge-2")
    one, those = f"{API}/customer/devices/edge-1", f"{API}/customer/sessions/{session['id']}"
    reads = [
        f"{API}/customer/devices",
        f"{one}/status",
        f"{one}/commands",
        f"{API}/customer/sessions",
        those,
        f"{those}/transcript",
        f"{API}/customer/approvals",
        f"{API}/customer/system",
        f"{API}/customer/system/info",
    ]
    writes: list[tuple[str, str, Any]] = [
        ("POST", f"{API}/customer/devices/provision", {"deviceId": "edge-3"}),
        ("PATCH", one, {"name": "New"}),
        ("POST", f"{one}/suspend", {}),
        ("POST", f"{one}/resume", {}),
        ("POST", f"{one}/rotate-secret", {}),
        ("DELETE", one, None),
        ("POST", f"{API}/customer/sessions", {"deviceId": "edge-2", "type": "diagnostic"}),
        ("POST", f"{those}/commands", {"type": "ping"}),
        ("POST", f"{those}/approve", {"approved": True, "commandId": waiting["id"]}),
        ("POST", f"{those}/approve", {"approved": False, "reason": "No", "commandId": waiting["id"]}),
        ("POST", f"{those}/approve", {"approved": True}),
        ("POST", f"{those}/commands/{waiting['id']}/cancel", {}),
        ("POST", f"{those}/commands/{command['id']}/retry", {}),
        ("POST", f"{those}/close", {}),
    ]
    before = await world.owner.transcript(session["id"])
    for path in reads:
        assert (await world.viewer.get(path)).status == 200, path
    for method, path, body in [("GET", f"{API}/customer/audit", None), *writes]:
        reply = await world.viewer.call(method, path, body)
        assert (reply.status, reply.code) == (403, "FORBIDDEN"), (method, path)
    assert await world.owner.transcript(session["id"]) == before


@pytest.mark.parametrize("who", ["owner", "admin", "service"])
async def test_owners_admins_and_services_may_do_everything_that_decides_nothing(world: World, who: str) -> None:
    caller: CustomerClient = getattr(world, who)
    await world.device("edge-1")
    one = f"{API}/customer/devices/edge-1"
    await caller.provision("edge-2")
    session = await caller.open_session("edge-1")
    command = await caller.submit(session["id"])
    those = f"{API}/customer/sessions/{session['id']}"
    expect(await caller.cancel(command), 200)
    expect(await caller.retry(command), 201)
    expect(await caller.post(f"{those}/close", {}), 200)
    expect(await caller.call("PATCH", one, {"name": "New"}), 200)
    for step in ("suspend", "resume", "rotate-secret"):
        expect(await caller.post(f"{one}/{step}"), 200)
    assert (await caller.call("DELETE", one)).status == 204
    for path in ("audit", "approvals", "sessions", "system"):
        expect(await caller.get(f"{API}/customer/{path}"), 200)


async def test_a_caller_without_a_token_learns_nothing_of_its_body(world: World) -> None:
    client = Client(world.http, world.url)
    reply = await client.post(f"{DEVICES}/provision", {"deviceId": "a b", "unknown": 1})
    assert (reply.status, reply.code) == (401, "UNAUTHENTICATED")


async def test_a_viewer_s_write_is_403_whatever_is_in_its_body(world: World) -> None:
    reply = await world.viewer.post(f"{API}/customer/sessions", {"nonsense": True})
    assert (reply.status, reply.code) == (403, "FORBIDDEN")
