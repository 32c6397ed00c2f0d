"""How one agent is set up, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aizen_gateway.dev.diagnostics import DEFAULT_LOG_FILES, BadParameter
from aizen_gateway.dev.diagnostics.parameters import split_target
from aizen_gateway.domain.values import DEVICE_ID


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How one agent is set up. Raises `ValueError` for what cannot work.

    `activation_code` is needed until the device has registered, and again after its secret was rotated. `state_dir`
    belongs to this agent alone. `use_socket` False means long polling only; where a socket cannot be had, it is tried
    again every `socket_retry_ms`. `poll_wait_ms` is how long a claim waits at the gateway, `visibility_timeout_ms` the
    lease it asks for, `concurrency` how many commands run at a time. `heartbeat_ms` overrides what the gateway asks
    for. `away_ms` is how long the device stays away when it is suspended, or told to slow down, and at least when
    another copy of it has taken over. `stop_grace_ms` bounds each step of a stop: letting the work end, stopping it,
    the last messages. `log_files` are what `logs` may show, `connectivity_targets` (`host:port`) what `connectivity`
    tries by itself; without any that is the gateway.
    """

    device_id: str
    state_dir: Path
    base_url: str = "http://127.0.0.1:3001"
    activation_code: str | None = field(default=None, repr=False)
    device_name: str | None = None
    use_socket: bool = True
    socket_retry_ms: int = 300_000
    poll_wait_ms: int = 25_000
    visibility_timeout_ms: int = 60_000
    concurrency: int = 2
    heartbeat_ms: int | None = None
    retry_base_ms: int = 500
    retry_cap_ms: int = 30_000
    away_ms: int = 60_000
    stop_grace_ms: int = 3000
    log_files: tuple[Path, ...] = DEFAULT_LOG_FILES
    connectivity_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("base_url must be an http or https address")
        if not DEVICE_ID.match(self.device_id):
            raise ValueError("device_id must be 3 to 64 letters, digits, _ or -, beginning with a letter or digit")
        bounds = {"poll_wait_ms": (0, 30_000), "visibility_timeout_ms": (1000, 3_600_000), "concurrency": (1, 100)}
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be from {low} to {high}")
        durations = (self.retry_base_ms, self.retry_cap_ms, self.stop_grace_ms, self.socket_retry_ms, self.away_ms)
        if min(*durations, self.heartbeat_ms or 1) < 1:
            raise ValueError("durations must be positive")
        for target in self.connectivity_targets:
            try:
                split_target(target)
            except BadParameter as error:
                raise ValueError(f"connectivity_targets: {error}") from None

    @property
    def socket_url(self) -> str:
        """Where the device's socket is, `wss` where the gateway is reached by `https`.

        It is to push as many commands as run at a time, ten at the most, under the lease that claims ask for.
        """
        scheme, rest = self.base_url.rstrip("/").split("://", 1)
        query = f"prefetch={min(self.concurrency, 10)}&visibilityTimeout={self.visibility_timeout_ms}"
        return f"{'wss' if scheme.lower() == 'https' else 'ws'}://{rest}/ws/device?{query}"

    @property
    def gateway_target(self) -> str:
        """The gateway's own address as `host:port`."""
        parts = urlsplit(self.base_url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
