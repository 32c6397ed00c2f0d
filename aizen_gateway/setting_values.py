"""What the text of an environment variable may be, one function a kind; `settings` says which variable is which.

Each takes the text, stripped of surrounding white space unless it is a secret, returns the value and raises
`BadValue` with the end of a sentence that begins with the variable's name. URLs may hold passwords, so no message
repeats any part of one.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import SplitResult, parse_qs, urlsplit

from .domain.values import COMMAND_TYPE, DEFAULT_DIAGNOSTIC_TYPES, LONGEST_EVENTS_S, SHORTEST_EVENTS_S

DIAGNOSTIC_TYPES = ",".join(sorted(DEFAULT_DIAGNOSTIC_TYPES))

# A hundred years: beyond it, times derived from a duration leave the range of dates.
_MAX_SECONDS = 100 * 365 * 24 * 3600
# What Redis scripts count exactly, and far beyond any limit that limits.
_MAX_LIMIT = 1_000_000_000
# The kernel's `sun_path`, less its final NUL.
_MAX_SOCKET_PATH = 107
# Supabase's own tools refuse shorter ones.
_MIN_SECRET = 16

_REDIS_PLAIN = ("redis", "rediss")
_REDIS_SENTINEL = ("redis+sentinel", "rediss+sentinel")
_REDIS_CLUSTER = ("redis+cluster", "rediss+cluster")
_REDIS_SCHEMES = (*_REDIS_PLAIN, "unix", *_REDIS_SENTINEL, *_REDIS_CLUSTER)

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class BadValue(ValueError):
    """The text is not a value of its kind."""


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


def _whole(text: str, low: int, high: int, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or not low <= int(text) <= high:
        raise BadValue(f"must be {what}, not {_quoted(text)}")
    return int(text)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def duration(text: str) -> int:
    """Seconds, 1 or more."""
    return _whole(text, 1, _MAX_SECONDS, "a positive whole number of seconds")


def delay(text: str) -> int:
    """Seconds, 0 or more."""
    return _whole(text, 0, _MAX_SECONDS, "a whole number of seconds, 0 or more")


def event_retention(text: str) -> int:
    """Seconds, not less than portals may rely on."""
    low, high = SHORTEST_EVENTS_S, LONGEST_EVENTS_S
    return _whole(text, low, high, f"a whole number of seconds from {low} to {high}")


def limit(text: str) -> int:
    """How many a minute; 0 for no limit."""
    return _whole(text, 0, _MAX_LIMIT, "a whole number, 0 or more")


def pool_size(text: str) -> int:
    """How many connections, 1 or more."""
    return _whole(text, 1, 10_000, "a whole number from 1 to 10000")


def port(text: str) -> int:
    """A TCP port; 0 leaves the choice to the system."""
    return _whole(text, 0, 65535, "a port, 0 to 65535")


def switch(text: str) -> bool:
    """`on` or `off`, or how else people write these."""
    known = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise BadValue(f"must be on or off, not {_quoted(text)}")
    return known[text.lower()]


def log_level(text: str) -> LogLevel:
    """Any case."""
    try:
        return LogLevel(text.lower())
    except ValueError:
        raise BadValue(f"must be one of {', '.join(LogLevel)}, not {_quoted(text)}") from None


def log_format(text: str) -> LogFormat:
    """Any case."""
    try:
        return LogFormat(text.lower())
    except ValueError:
        raise BadValue(f"must be one of {', '.join(LogFormat)}, not {_quoted(text)}") from None


def name(text: str) -> str:
    """A word that is safe in keys, labels and logs."""
    if not _NAME.fullmatch(text):
        raise BadValue(f"must be 1 to 128 letters, digits or . _ : -, not {_quoted(text)}")
    return text


def host(text: str) -> str:
    """A host name or an address to listen on; brackets around an IPv6 address are dropped."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not _HOST.fullmatch(bare) or (":" in bare and bare.count(":") < 2):
        raise BadValue(f"must be a host name or an address without a port, not {_quoted(text)}")
    return bare


def bind_address(text: str) -> tuple[str, int]:
    """`host:port`, `[v6 address]:port`."""
    before, colon, after = text.rpartition(":")
    if not colon or not before or (":" in before and not before.startswith("[")):
        raise BadValue(f"must be host:port, or [address]:port for IPv6, not {_quoted(text)}")
    return host(before), port(after)


def socket_path(text: str) -> str:
    """A path that fits a socket address."""
    if len(text.encode("utf-8", "surrogateescape")) > _MAX_SOCKET_PATH or "\0" in text:
        raise BadValue(f"must be a path of at most {_MAX_SOCKET_PATH} bytes")
    return text


def _items(text: str) -> list[str]:
    return list(dict.fromkeys(item for item in (part.strip() for part in text.split(",")) if item))


def origins(text: str) -> tuple[str, ...]:
    """Origins as a browser writes them: lower case, without the scheme's own port."""
    return tuple(dict.fromkeys(_origin(item) for item in _items(text)))


def _origin(item: str) -> str:
    match = _ORIGIN.fullmatch(item)
    if match is None:
        shown = "one with credentials in it" if "@" in item else _quoted(item)
        raise BadValue(
            f"must be origins, scheme://host[:port] in ASCII with no path, final slash or wildcard, not {shown}"
        )
    scheme, where, number = match["scheme"].lower(), match["host"].lower(), match["port"]
    if number is None or number == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{where}"
    return f"{scheme}://{where}:{port(number)}"


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """CIDRs; a bare address is a network of one, and IPv4 written as mapped IPv6 becomes IPv4."""
    return tuple(dict.fromkeys(_network(item) for item in _items(text)))


def _network(item: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(item)
    except ValueError:
        raise BadValue(f"must be CIDRs such as 10.0.0.0/8, with no host bits set, not {_quoted(item)}") from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def command_types(text: str) -> frozenset[str]:
    """Command types (contract section 3)."""
    for item in _items(text):
        if not COMMAND_TYPE.match(item):
            raise BadValue(f"must be command types, ^[a-z][a-z0-9_.-]{{0,63}}$, not {_quoted(item)}")
    if not _items(text):
        raise BadValue("must name at least one command type")
    return frozenset(_items(text))


def jwt_secret(text: str) -> str:
    """An HMAC secret, taken exactly as it is."""
    if text != text.strip():
        raise BadValue("begins or ends with white space")
    if len(text) < _MIN_SECRET:
        raise BadValue(f"is shorter than {_MIN_SECRET} characters, so it cannot be a Supabase JWT secret")
    return text


def supabase_url(text: str) -> str:
    """The project's base address, without a final slash."""
    url = _split(text, ("https", "http"))
    if url.query or url.fragment or "@" in url.netloc or not url.hostname or "?" in text or "#" in text:
        raise BadValue("must be https://host with nothing before the host and no query")
    base = text.rstrip("/")
    if base.endswith("/auth/v1"):
        raise BadValue("must be the project's address without /auth/v1")
    return base


def database_url(text: str) -> str:
    """What PostgreSQL's own clients take: several hosts, or none and a socket, are fine."""
    text = text.strip()
    url = _split(text, ("postgresql", "postgres"))
    for address in url.netloc.rpartition("@")[2].split(","):
        _check_address(address, required=False)
    return text


def redis_url(text: str) -> str:
    """`redis://`, `rediss://`, `unix://`, and with `+sentinel` or `+cluster` a list of hosts, comma-separated.

    Sentinel: `redis+sentinel://[user:password@]host[:port],.../master[/db]`; the credentials are those of the
    servers behind. Cluster: `redis+cluster://[user:password@]host[:port],...`, which has no databases.
    """
    text = text.strip()
    url = _split(text, _REDIS_SCHEMES)
    addresses = url.netloc.rpartition("@")[2].split(",")
    path = [part for part in url.path.split("/") if part]
    if url.scheme == "unix":
        if not url.path.strip("/") or addresses != [""]:
            raise BadValue("must name the socket by its absolute path: unix:///path.sock")
        return _with_database(text, url, [])
    if url.scheme in _REDIS_PLAIN and len(addresses) > 1:
        raise BadValue("names several hosts: say redis+sentinel:// or redis+cluster://")
    for address in addresses:
        _check_address(address, required=True)
    if url.scheme in _REDIS_CLUSTER:
        if path or "db" in parse_qs(url.query):
            raise BadValue("must not name a database: a cluster has none")
        return text
    if url.scheme in _REDIS_SENTINEL:
        if not path:
            raise BadValue("must name the master after the hosts: redis+sentinel://host:26379/mymaster/0")
        return _with_database(text, url, path[1:])
    return _with_database(text, url, path)


def _with_database(text: str, url: SplitResult, path: list[str]) -> str:
    named = [*path, *parse_qs(url.query).get("db", [])]
    if len(named) > 1 or not all(re.fullmatch(r"[0-9]{1,5}", part, re.ASCII) for part in named):
        raise BadValue("must end with the number of one database, or none")
    return text


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult:
    expected = ", ".join(f"{scheme}://" for scheme in schemes)
    if re.search(r"[\s\x00-\x1f]", text):
        raise BadValue("must not hold white space; percent-encode it")
    try:
        url = urlsplit(text)
    except ValueError:
        raise BadValue("is not a URL; what is not a letter or digit in a password must be percent-encoded") from None
    if url.scheme not in schemes or not text.lower().startswith(f"{url.scheme}://"):
        raise BadValue(f"must begin with {expected}")
    return url


def _check_address(address: str, *, required: bool) -> None:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::([0-9]*))?", address, re.ASCII)
    if match is None or (match[2] and int(match[2][:6]) > 65535):
        raise BadValue("has no valid host and port; / ? # @ : in a password must be percent-encoded")
    if required and not match[1]:
        raise BadValue("must name a host")
