"""The environment becomes settings, or a start that stops with lines an operator can act on (contract section 7)."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import ip_network
from pathlib import Path

import pytest

from aizen_gateway.settings import SETTINGS, Settings, SettingsError, settings_table

SECRET = "a-secret-of-at-least-32-characters"
NEEDED = {
    "DATABASE_URL": "postgresql://aizen:hunter2@db.example.com:5432/aizen",
    "REDIS_URL": "redis://:hunter3@cache.example.com:6379/0",
    "SUPABASE_JWT_SECRET": SECRET,
}


def read(**variables: str) -> Settings:
    return Settings.from_env(NEEDED | variables)


def problems(**variables: str) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(NEEDED | variables)
    return caught.value.problems


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = read()
    shown = dataclasses.asdict(settings)
    for name in ("database_url", "redis_url", "supabase_jwt_secret", "instance_id", "diagnostic_types"):
        del shown[name]
    assert shown == {
        "supabase_url": None,
        "host": "127.0.0.1",
        "port": 3001,
        "unix_socket": None,
        "cors_origins": (),
        "log_level": "info",
        "log_format": "json",
        "metrics_bind": None,
        "trusted_proxies": (),
        "environment": "development",
        "build": "unknown",
        "device_session_ttl": 604800,
        "device_session_max_age": 30 * 24 * 3600,
        "approval_ttl": 3600,
        "heartbeat_interval": 30,
        "heartbeat_timeout": 90,
        "session_ttl": 3600,
        "command_retention": 90 * 24 * 3600,
        "audit_retention": 400 * 24 * 3600,
        "event_retention": 600,
        "drain_timeout": 30,
        "drain_delay": 0,
        "rate_limit_device": 300,
        "rate_limit_customer": 1000,
        "rate_limit_auth": 30,
        "rate_limit_socket": 1200,
        "database_pool_size": 10,
        "database_statement_cache": True,
    }
    assert settings.diagnostic_types == {
        "ping", "traceroute", "dns", "port_check", "http_check", "interfaces",
        "routes", "arp", "connectivity", "bandwidth", "system_info", "logs",
    }  # fmt: skip


def test_every_variable_that_is_set_is_read() -> None:
    settings = read(
        SUPABASE_URL="https://ref.supabase.co/",
        AIZEN_HOST="[::1]",
        AIZEN_PORT="0",
        AIZEN_UNIX_SOCKET="/run/aizen.sock",
        AIZEN_CORS_ORIGINS="https://App.example.com:443, http://localhost:5173,,https://app.example.com",
        AIZEN_LOG_LEVEL="WARNING",
        AIZEN_LOG_FORMAT="console",
        AIZEN_METRICS_BIND="[::1]:9100",
        AIZEN_TRUSTED_PROXIES="10.0.0.0/8, 192.0.2.7,2001:db8::/32, ::ffff:172.16.0.0/108",
        AIZEN_ENVIRONMENT="production",
        AIZEN_BUILD="3f2a1c9",
        AIZEN_INSTANCE_ID="gw-1",
        AIZEN_DEVICE_SESSION_TTL="1",
        AIZEN_DEVICE_SESSION_MAX_AGE="2",
        AIZEN_APPROVAL_TTL="3",
        AIZEN_HEARTBEAT_INTERVAL="4",
        AIZEN_HEARTBEAT_TIMEOUT="5",
        AIZEN_SESSION_TTL="6",
        AIZEN_COMMAND_RETENTION="61",
        AIZEN_AUDIT_RETENTION="62",
        AIZEN_EVENT_RETENTION="601",
        AIZEN_DRAIN_TIMEOUT="7",
        AIZEN_DRAIN_DELAY="8",
        AIZEN_DIAGNOSTIC_TYPES="ping, custom.check-2",
        AIZEN_RATE_LIMIT_DEVICE="0",
        AIZEN_RATE_LIMIT_CUSTOMER="9",
        AIZEN_RATE_LIMIT_AUTH="10",
        AIZEN_RATE_LIMIT_SOCKET="11",
        AIZEN_DATABASE_POOL_SIZE="12",
        AIZEN_DATABASE_STATEMENT_CACHE="off",
    )
    assert dataclasses.asdict(settings) == {
        "database_url": NEEDED["DATABASE_URL"],
        "redis_url": NEEDED["REDIS_URL"],
        "supabase_url": "https://ref.supabase.co",
        "supabase_jwt_secret": SECRET,
        "host": "::1",
        "port": 0,
        "unix_socket": "/run/aizen.sock",
        "cors_origins": ("https://app.example.com", "http://localhost:5173"),
        "log_level": "warning",
        "log_format": "console",
        "metrics_bind": ("::1", 9100),
        "trusted_proxies": tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "172.16.0.0/12"))),
        "environment": "production",
        "build": "3f2a1c9",
        "instance_id": "gw-1",
        "device_session_ttl": 1,
        "device_session_max_age": 2,
        "approval_ttl": 3,
        "heartbeat_interval": 4,
        "heartbeat_timeout": 5,
        "session_ttl": 6,
        "command_retention": 61,
        "audit_retention": 62,
        "event_retention": 601,
        "drain_timeout": 7,
        "drain_delay": 8,
        "diagnostic_types": frozenset({"ping", "custom.check-2"}),
        "rate_limit_device": 0,
        "rate_limit_customer": 9,
        "rate_limit_auth": 10,
        "rate_limit_socket": 11,
        "database_pool_size": 12,
        "database_statement_cache": False,
    }


def test_the_process_environment_is_read_when_no_other_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (NEEDED | {"AIZEN_PORT": "4001"}).items():
        monkeypatch.setenv(name, value)
    assert Settings.from_env().port == 4001


def test_a_given_environment_is_the_only_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIZEN_PORT", "4001")
    monkeypatch.setenv("DATABASE_URL", NEEDED["DATABASE_URL"])
    assert read().port == 3001
    with pytest.raises(SettingsError, match="DATABASE_URL: must be set"):
        Settings.from_env({key: value for key, value in NEEDED.items() if key != "DATABASE_URL"})


def test_an_env_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("AIZEN_PORT=4001\n")
    monkeypatch.chdir(tmp_path)
    assert read().port == 3001


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_value_counts_as_not_set(empty: str) -> None:
    settings = read(AIZEN_PORT=empty, AIZEN_UNIX_SOCKET=empty, AIZEN_DIAGNOSTIC_TYPES=empty, SUPABASE_URL=empty)
    assert (settings.port, settings.unix_socket, len(settings.diagnostic_types)) == (3001, None, 12)
    assert problems(DATABASE_URL=empty) == {"DATABASE_URL": "must be set"}


def test_white_space_around_a_value_does_not_count() -> None:
    assert read(AIZEN_PORT=" 4001\n", AIZEN_LOG_LEVEL=" info ").port == 4001
    assert read(REDIS_URL=" redis://cache\n").redis_url == "redis://cache"


def test_two_instances_of_one_host_and_process_id_have_different_names() -> None:
    one, other = read(), read()
    assert one.instance_id != other.instance_id
    assert re.fullmatch(r"[A-Za-z0-9._-]+-\d+-[0-9a-f]{6}", one.instance_id)


def test_both_urls_are_required_and_one_way_to_sign_in() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({})
    assert str(caught.value).splitlines() == [
        "DATABASE_URL: must be set",
        "REDIS_URL: must be set",
        "SUPABASE_URL and SUPABASE_JWT_SECRET: one must be set, or no customer could ever sign in",
    ]


def test_either_way_to_sign_in_is_enough() -> None:
    without = {key: value for key, value in NEEDED.items() if key != "SUPABASE_JWT_SECRET"}
    settings = Settings.from_env(without | {"SUPABASE_URL": "http://127.0.0.1:54321"})
    assert (settings.supabase_url, settings.supabase_jwt_secret) == ("http://127.0.0.1:54321", None)


def test_all_wrong_variables_are_reported_at_once_one_line_each() -> None:
    found = problems(AIZEN_PORT="70000", AIZEN_LOG_FORMAT="xml", AIZEN_SESSION_TTL="1h", AIZEN_INSTANCE_ID="a\nb")
    assert list(found) == ["AIZEN_PORT", "AIZEN_LOG_FORMAT", "AIZEN_INSTANCE_ID", "AIZEN_SESSION_TTL"]
    assert str(SettingsError(found)).count("\n") == 3


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIZEN_EVENT_RETENTION", "599"),
        ("AIZEN_EVENT_RETENTION", "86401"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x"),
        ("DATABASE_URL", "postgresql+asyncpg://u:hunter2@db/x"),
        ("DATABASE_URL", "u:hunter2@db/x"),
        ("DATABASE_URL", "postgresql:u:hunter2@db"),
        ("DATABASE_URL", "postgresql://u:hunt/er2@db/x"),
        ("DATABASE_URL", "postgresql://u:hunt er2@db/x"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:5432a/x"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:65536/x"),
        ("DATABASE_URL", "postgresql://u:[hunter2@db/x"),
        ("DATABASE_URL", "postgresql://u:hunter2\uff03@db/x"),
        ("REDIS_URL", "http://:hunter2@cache"),
        ("REDIS_URL", "redis://:hunter2@"),
        ("REDIS_URL", "redis://:hunter2@cache/notanumber"),
        ("REDIS_URL", "redis://:hunter2@cache/0/1"),
        ("REDIS_URL", "redis://:hunter2@one,two/0"),
        ("REDIS_URL", "redis://:hunter2@cache:port/0"),
        ("REDIS_URL", "unix://:hunter2@"),
        ("REDIS_URL", "unix://relative/hunter2.sock"),
        ("REDIS_URL", "redis+sentinel://:hunter2@one:26379,two:26379"),
        ("REDIS_URL", "redis+sentinel://:hunter2@one:26379/mymaster/x"),
        ("REDIS_URL", "redis+sentinel://:hunter2@one,,two/mymaster"),
        ("REDIS_URL", "redis+cluster://:hunter2@one,two/1"),
        ("REDIS_URL", "redis+cluster://:hunter2@one,two?db=1"),
        ("SUPABASE_JWT_SECRET", "hunter2"),
        ("SUPABASE_JWT_SECRET", "hunter2-hunter2-hunter2-hunter2\n"),
        ("SUPABASE_URL", "ref.supabase.co"),
        ("SUPABASE_URL", "ftp://ref.supabase.co"),
        ("SUPABASE_URL", "https://"),
        ("SUPABASE_URL", "https://u:hunter2@ref.supabase.co"),
        ("SUPABASE_URL", "https://ref.supabase.co?hunter2"),
        ("SUPABASE_URL", "https://ref.supabase.co/auth/v1"),
        ("AIZEN_HOST", "127.0.0.1:3001"),
        ("AIZEN_HOST", "http://127.0.0.1"),
        ("AIZEN_PORT", "65536"),
        ("AIZEN_PORT", "-1"),
        ("AIZEN_PORT", "3_001"),
        ("AIZEN_PORT", "٣"),
        ("AIZEN_UNIX_SOCKET", "/" + "x" * 107),
        ("AIZEN_CORS_ORIGINS", "*"),
        ("AIZEN_CORS_ORIGINS", "null"),
        ("AIZEN_CORS_ORIGINS", "app.example.com"),
        ("AIZEN_CORS_ORIGINS", "https://app.example.com/"),
        ("AIZEN_CORS_ORIGINS", "https://app.example.com/path"),
        ("AIZEN_CORS_ORIGINS", "https://u:hunter2@app.example.com"),
        ("AIZEN_CORS_ORIGINS", "https://app.example.com:99999"),
        ("AIZEN_CORS_ORIGINS", "https://good.example.com,https://*.example.com"),
        ("AIZEN_LOG_LEVEL", "verbose"),
        ("AIZEN_LOG_FORMAT", "text"),
        ("AIZEN_METRICS_BIND", "9100"),
        ("AIZEN_METRICS_BIND", ":9100"),
        ("AIZEN_METRICS_BIND", "::1:9100"),
        ("AIZEN_METRICS_BIND", "localhost:http"),
        ("AIZEN_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("AIZEN_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("AIZEN_TRUSTED_PROXIES", "loadbalancer"),
        ("AIZEN_ENVIRONMENT", "my environment"),
        ("AIZEN_INSTANCE_ID", "x" * 129),
        ("AIZEN_DEVICE_SESSION_TTL", "0"),
        ("AIZEN_DEVICE_SESSION_MAX_AGE", "30d"),
        ("AIZEN_APPROVAL_TTL", "1.5"),
        ("AIZEN_HEARTBEAT_INTERVAL", "-30"),
        ("AIZEN_HEARTBEAT_TIMEOUT", "+90"),
        ("AIZEN_SESSION_TTL", "1e3"),
        ("AIZEN_DRAIN_TIMEOUT", "9" * 30),
        ("AIZEN_DRAIN_DELAY", "-1"),
        ("AIZEN_DIAGNOSTIC_TYPES", "Ping"),
        ("AIZEN_DIAGNOSTIC_TYPES", "ping,2fast"),
        ("AIZEN_DIAGNOSTIC_TYPES", ","),
        ("AIZEN_DIAGNOSTIC_TYPES", "x" * 65),
        ("AIZEN_RATE_LIMIT_DEVICE", "-1"),
        ("AIZEN_RATE_LIMIT_CUSTOMER", "many"),
        ("AIZEN_RATE_LIMIT_AUTH", "0.5"),
        ("AIZEN_RATE_LIMIT_SOCKET", "1,200"),
        ("AIZEN_DATABASE_POOL_SIZE", "0"),
        ("AIZEN_DATABASE_STATEMENT_CACHE", "maybe"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable_without_its_password(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(NEEDED | {variable: value})
    text = str(caught.value)
    assert text.startswith(f"{variable}: ")
    assert len(text.splitlines()) == 1
    assert "hunter2" not in text
    assert "hunt" not in text


def test_a_secret_is_nowhere_in_what_a_traceback_shows() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(NEEDED | {"DATABASE_URL": "postgresql://u:[hunter2@db/x"})
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "rediss://user:pass@cache:6380/2?ssl_ca_certs=/ca.pem",
        "redis://cache?db=3",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock?db=1",
        "unix://:password@/run/redis.sock",
        "redis+sentinel://host:26379,host2:26379/mymaster/0",
        "rediss+sentinel://user:pass@host,host2/mymaster",
        "redis+cluster://host:6379,host2:6379",
        "rediss+cluster://user:pass@[::1]:6379,host2",
    ],
)
def test_every_documented_form_of_a_redis_url_is_taken(url: str) -> None:
    assert read(REDIS_URL=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "postgres://db",
        "postgresql:///aizen?host=/run/postgresql",
        "postgresql://u:p%2Fq@one:5432,two:5433/aizen?sslmode=require",
        "postgresql://u@[::1]:5432/aizen",
    ],
)
def test_what_postgresql_clients_take_is_taken(url: str) -> None:
    assert read(DATABASE_URL=url).database_url == url


def test_repr_hides_secrets() -> None:
    shown = repr(read())
    assert "hunter" not in shown
    assert SECRET not in shown
    assert "database_url='***'" in shown
    assert "port=3001" in shown


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().port = 1  # type: ignore[misc]


def test_the_table_names_every_field_once_with_its_default() -> None:
    assert [doc.field for doc in SETTINGS] == [field.name for field in dataclasses.fields(Settings)]
    assert len({doc.variable for doc in SETTINGS}) == len(SETTINGS)
    assert {doc.variable for doc in SETTINGS if doc.required} == {"DATABASE_URL", "REDIS_URL"}
    assert {doc.variable for doc in SETTINGS if doc.secret} == set(NEEDED)
    written = {doc.variable: doc.default for doc in SETTINGS if doc.default and doc.field != "instance_id"}
    assert dataclasses.replace(read(**written), instance_id="i") == read(AIZEN_INSTANCE_ID="i")


def test_the_markdown_table_has_a_row_for_each_variable() -> None:
    rows = settings_table().splitlines()
    assert len(rows) == len(SETTINGS) + 2
    assert all(row.count(" | ") == 2 for row in rows if not row.startswith("|--"))
    assert "| `AIZEN_PORT` | `3001` | TCP port to listen on; 0 takes a free one. |" in rows
