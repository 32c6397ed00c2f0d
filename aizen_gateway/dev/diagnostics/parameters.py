"""Reads the parameters of a command, which come from far away and may end up beside a system tool.

Everything has a type, a default and bounds, and nothing that starts with `-` passes as a target. The reader also
remembers what was asked for, so that a misspelt parameter can be named in the result instead of being lost.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from aizen_gateway.dev.diagnostics.outcome import CannotRun

_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z", re.ASCII)
_SCOPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z", re.ASCII)
_MAX_URL = 2048


class BadParameter(CannotRun):
    """A parameter is missing, of the wrong type or out of its bounds; the text names it."""


def checked_host(name: str, value: object) -> str:
    """Return `value` as a host name or IP address that is safe to hand on.

    Names outside ASCII come back in their IDNA form. Raises `BadParameter` for anything else.
    """
    if not isinstance(value, str) or not value:
        raise BadParameter(f"{name} must be a host name or an IP address")
    if value.startswith("-"):
        raise BadParameter(f"{name} must not start with a hyphen")
    address, percent, scope = value.partition("%")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        pass
    else:
        if percent and not _SCOPE.match(scope):
            raise BadParameter(f"{name} has a scope that is no interface name")
        return value
    try:
        ascii_name = value.encode("idna").decode("ascii") if not value.isascii() else value
    except UnicodeError:
        raise BadParameter(f"{name} is not a host name") from None
    if not _HOST_NAME.match(ascii_name):
        raise BadParameter(f"{name} is not a host name")
    return ascii_name


def split_target(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`. Raises `BadParameter`."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or not 1 <= int(port[:6]) <= 65535:
        raise BadParameter("a target is written host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return checked_host("target", host), int(port)


class Parameters:
    """One command's parameters. Every reader raises `BadParameter` for a wrong value."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._asked: set[str] = set()

    def unread(self) -> list[str]:
        """Names that were given and that nobody asked for, sorted."""
        return sorted(set(self._values) - self._asked)

    def given(self, name: str) -> bool:
        """Whether there is a value; null counts as none."""
        self._asked.add(name)
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as it came, or None."""
        self._asked.add(name)
        return self._values.get(name)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole number within `low` and `high`; required when `default` is None."""
        value = self.raw(name)
        if value is None:
            if default is None:
                raise BadParameter(f"{name} is required")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadParameter(f"{name} must be a whole number from {low} to {high}")
        return value

    def seconds(self, name: str, default_ms: int, low_ms: int, high_ms: int) -> float:
        """A duration given in milliseconds, as seconds."""
        return self.integer(name, default_ms, low_ms, high_ms) / 1000

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadParameter(f"{name} must be true or false")
        return value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of `choices`, in any case."""
        value = self.raw(name)
        if value is None:
            return default
        for choice in choices:
            if isinstance(value, str) and value.lower() == choice.lower():
                return choice
        raise BadParameter(f"{name} must be one of {', '.join(choices)}")

    def matching(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        """A text that matches, or None when absent. `what` says in words what it should be."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str) or not pattern.match(value):
            raise BadParameter(f"{name} must be {what}")
        return value

    def host(self, name: str = "host") -> str:
        """A required host name or IP address."""
        if not self.given(name):
            raise BadParameter(f"{name} is required")
        return checked_host(name, self._values[name])

    def address(self, name: str) -> str | None:
        """An IP address, or None when absent."""
        value = self.raw(name)
        if value is None:
            return None
        try:
            return str(ipaddress.ip_address(value)) if isinstance(value, str) else _not_an_address(name)
        except ValueError:
            return _not_an_address(name)

    def url(self, name: str = "url") -> str:
        """A required http or https address without user or password."""
        value = self.raw(name)
        if not isinstance(value, str) or not value or len(value) > _MAX_URL:
            raise BadParameter(f"{name} is required: an http or https address of at most {_MAX_URL} characters")
        try:
            parts = urlsplit(value)
            port_is_bad = parts.port == 0
        except ValueError:
            raise BadParameter(f"{name} is not an address") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port_is_bad:
            raise BadParameter(f"{name} must be an http or https address")
        if parts.username is not None or parts.password is not None:
            raise BadParameter(f"{name} must not carry a user or a password")
        checked_host(name, parts.hostname)
        return value


def _not_an_address(name: str) -> str:
    raise BadParameter(f"{name} must be an IP address")
