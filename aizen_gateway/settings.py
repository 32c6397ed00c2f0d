"""The environment, read once into a frozen object, so that no other part ever looks at it (contract section 7).

Every field of `Settings` declares its variable, parser, default and meaning in one place; `SETTINGS` is that
declaration as data, which the README's table is checked against. An empty value counts as not set: unit files and
compose files often name a variable and leave it blank. No `.env` file is read.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Self

from environs import Env, EnvValidationError

from . import setting_values as values

_WAYS_TO_SIGN_IN = ("SUPABASE_URL", "SUPABASE_JWT_SECRET")


class SettingsError(Exception):
    """One or more variables are wrong. The text has one line for each, naming it; no secret is ever in it."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("\n".join(f"{variable}: {problem}" for variable, problem in self.problems.items()))


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One variable as documentation needs it. `default` is text as an operator would write it, empty for none."""

    variable: str
    field: str
    default: str
    meaning: str
    required: bool
    secret: bool


def _setting(
    variable: str,
    parse: Callable[[str], Any],
    default: str | None,
    meaning: str,
    *,
    required: bool = False,
    secret: bool = False,
    computed: Callable[[], Any] | None = None,
    default_text: str | None = None,
) -> Any:
    """A dataclass field that carries its declaration. `computed` makes a default that text cannot hold."""
    doc = SettingDoc(variable, "", default_text or default or "", meaning, required, secret)
    metadata = {"doc": doc, "parse": parse}
    if required:
        return dataclasses.field(metadata=metadata)
    factory = computed or (lambda: None if default is None else parse(default))
    return dataclasses.field(default_factory=factory, metadata=metadata)


def _own_instance_id() -> str:
    """Host name and process id; the random end tells a restarted container (pid 1 again) from its predecessor."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:96] or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """How one instance runs. Durations are whole seconds, limits are per minute and 0 switches one off."""

    database_url: str = _setting(
        "DATABASE_URL",
        values.database_url,
        None,
        "PostgreSQL, `postgresql://user:password@host:5432/name`. In production the Supabase project's database.",
        required=True,
        secret=True,
    )
    redis_url: str = _setting(
        "REDIS_URL",
        values.redis_url,
        None,
        "Redis or Valkey: `redis://host:6379/0`, `rediss://` for TLS, `unix:///path.sock?db=0`, "
        "`redis+sentinel://host:26379,host2:26379/mymaster/0`, `redis+cluster://host:6379,host2:6379` "
        "(`rediss+sentinel`, `rediss+cluster` for TLS).",
        required=True,
        secret=True,
    )
    supabase_url: str | None = _setting(
        "SUPABASE_URL",
        values.supabase_url,
        None,
        "The Supabase project, `https://<ref>.supabase.co`: its JWKS and issuer. This or `SUPABASE_JWT_SECRET`.",
    )
    supabase_jwt_secret: str | None = _setting(
        "SUPABASE_JWT_SECRET",
        values.jwt_secret,
        None,
        "The project's HS256 secret, for tokens signed with it. This or `SUPABASE_URL`, or both.",
        secret=True,
    )
    host: str = _setting("AIZEN_HOST", values.host, "127.0.0.1", "Address to listen on.")
    port: int = _setting("AIZEN_PORT", values.port, "3001", "TCP port to listen on; 0 takes a free one.")
    unix_socket: str | None = _setting(
        "AIZEN_UNIX_SOCKET", values.socket_path, None, "Path of a unix socket to listen on instead of host and port."
    )
    cors_origins: tuple[str, ...] = _setting(
        "AIZEN_CORS_ORIGINS",
        values.origins,
        "",
        "Browser origins that may call the API and open sockets, comma-separated: `https://app.example.com`.",
    )
    log_level: values.LogLevel = _setting(  # noqa: RUF009 - it returns a dataclass field
        "AIZEN_LOG_LEVEL", values.log_level, "info", "`debug`, `info`, `warning`, `error` or `critical`."
    )
    log_format: values.LogFormat = _setting(  # noqa: RUF009 - it returns a dataclass field
        "AIZEN_LOG_FORMAT", values.log_format, "json", "`json` (one object a line) or `console`."
    )
    metrics_bind: tuple[str, int] | None = _setting(
        "AIZEN_METRICS_BIND",
        values.bind_address,
        None,
        "`host:port` that serves `/metrics`; `[::1]:9100` for IPv6. Not set: not served.",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "AIZEN_TRUSTED_PROXIES",
        values.networks,
        "",
        "CIDRs of the proxies whose `X-Forwarded-For` is believed, comma-separated.",
    )
    environment: str = _setting(
        "AIZEN_ENVIRONMENT", values.name, "development", "Name of this deployment, shown in `/customer/system`."
    )
    build: str = _setting(
        "AIZEN_BUILD", values.name, "unknown", "Name of the build, such as a commit, shown in `/customer/system`."
    )
    instance_id: str = _setting(
        "AIZEN_INSTANCE_ID",
        values.name,
        None,
        "Name of this instance, unique among those that share a Redis.",
        computed=_own_instance_id,
        default_text="host name, process id and a random end",
    )
    device_session_ttl: int = _setting(
        "AIZEN_DEVICE_SESSION_TTL", values.duration, "604800", "Seconds a device's token lives without being used."
    )
    device_session_max_age: int = _setting(
        "AIZEN_DEVICE_SESSION_MAX_AGE",
        values.duration,
        "2592000",
        "Seconds after sign-in at which a device's token ends however much it is used (30 days).",
    )
    approval_ttl: int = _setting(
        "AIZEN_APPROVAL_TTL", values.duration, "3600", "Seconds within which an approved command must be claimed."
    )
    heartbeat_interval: int = _setting(
        "AIZEN_HEARTBEAT_INTERVAL", values.duration, "30", "Seconds between heartbeats that devices are asked for."
    )
    heartbeat_timeout: int = _setting(
        "AIZEN_HEARTBEAT_TIMEOUT", values.duration, "90", "Seconds without a heartbeat until a device is offline."
    )
    session_ttl: int = _setting(
        "AIZEN_SESSION_TTL", values.duration, "3600", "Seconds until an open diagnostic session expires."
    )
    command_retention: int = _setting(
        "AIZEN_COMMAND_RETENTION",
        values.duration,
        "7776000",
        "Seconds that ended sessions and their commands are kept (90 days).",
    )
    audit_retention: int = _setting(
        "AIZEN_AUDIT_RETENTION", values.duration, "34560000", "Seconds that audit records are kept (400 days)."
    )
    event_retention: int = _setting(
        "AIZEN_EVENT_RETENTION",
        values.event_retention,
        "600",
        "Seconds that events are kept for portals that come back, 600 to 86400; 1,000 a customer are kept at any age.",
    )
    drain_timeout: int = _setting(
        "AIZEN_DRAIN_TIMEOUT", values.duration, "30", "Seconds that a stop may take, the drain delay included."
    )
    drain_delay: int = _setting(
        "AIZEN_DRAIN_DELAY",
        values.delay,
        "0",
        "Seconds between `/readyz` turning 503 and new connections being refused: a balancer's check interval.",
    )
    diagnostic_types: frozenset[str] = _setting(
        "AIZEN_DIAGNOSTIC_TYPES",
        values.command_types,
        values.DIAGNOSTIC_TYPES,
        "Command types that only read and run without approval, comma-separated; every other one is remediation.",
    )
    rate_limit_device: int = _setting(
        "AIZEN_RATE_LIMIT_DEVICE", values.limit, "300", "Requests a minute for each device; 0 for no limit."
    )
    rate_limit_customer: int = _setting(
        "AIZEN_RATE_LIMIT_CUSTOMER", values.limit, "1000", "Requests a minute for each user; 0 for no limit."
    )
    rate_limit_auth: int = _setting(
        "AIZEN_RATE_LIMIT_AUTH",
        values.limit,
        "30",
        "Failed sign-ins and registrations a minute for each device id, ten times as many for an address; "
        "0 for no limit.",
    )
    rate_limit_socket: int = _setting(
        "AIZEN_RATE_LIMIT_SOCKET", values.limit, "1200", "Messages a minute on one socket; 0 for no limit."
    )
    database_pool_size: int = _setting(
        "AIZEN_DATABASE_POOL_SIZE", values.pool_size, "10", "PostgreSQL connections that this instance holds at most."
    )
    database_statement_cache: bool = _setting(
        "AIZEN_DATABASE_STATEMENT_CACHE",
        values.switch,
        "on",
        "`off` behind a transaction pooler (Supabase's port 6543), which cannot keep prepared statements.",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read `environ` (the process's own when None). Raises `SettingsError` with every wrong variable at once."""
        env = _Environment(os.environ if environ is None else environ)
        env.add_parser("setting", lambda raw, parse, secret: _parsed(raw, parse, secret=secret))
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            doc: SettingDoc = field.metadata["doc"]
            if env.has(doc.variable) or doc.required:
                found[field.name] = env.setting(doc.variable, parse=field.metadata["parse"], secret=doc.secret)
        problems = _problems(env)
        if not any(env.has(variable) for variable in _WAYS_TO_SIGN_IN):
            problems[" and ".join(_WAYS_TO_SIGN_IN)] = "one must be set, or no customer could ever sign in"
        if problems:
            raise SettingsError(problems)
        return cls(**found)

    def __repr__(self) -> str:
        """All fields, with secrets as `'***'`."""
        shown = (
            f"{field.name}={'***' if field.metadata['doc'].secret and value else value!r}"
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class _Environment(Env):
    """environs over a given mapping alone: it would otherwise fall back to the process's variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(eager=False)
        self._given = {key: value for key, value in environ.items() if value.strip()}

    def has(self, variable: str) -> bool:
        return variable in self._given

    def _get_value(self, env_key: str, default: Any) -> Any:
        return self._given.get(env_key, default)


def _parsed(raw: str, parse: Callable[[str], Any], *, secret: bool) -> Any:
    try:
        return parse(raw if secret else raw.strip())
    except values.BadValue as error:
        raise EnvValidationError(str(error), [str(error)]) from None


def _problems(env: Env) -> dict[str, str]:
    try:
        env.seal()
    except EnvValidationError as error:
        messages: Mapping[str, list[str]] = error.error_messages  # type: ignore[assignment]
        return {
            variable: "must be set" if "not set" in found[0] else " ".join(found[0].split())
            for variable, found in messages.items()
        }
    return {}


SETTINGS: tuple[SettingDoc, ...] = tuple(
    dataclasses.replace(field.metadata["doc"], field=field.name) for field in dataclasses.fields(Settings)
)


def settings_table() -> str:
    """`SETTINGS` as the Markdown table of the README, without a final newline."""
    rows = [
        f"| `{doc.variable}` | {'required' if doc.required else _cell(doc.default)} | {doc.meaning} |"
        for doc in SETTINGS
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _cell(default: str) -> str:
    if not default:
        return ""
    return default if " " in default else f"`{default.replace(',', ', ')}`"
