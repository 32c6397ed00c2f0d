"""What handlers find on the application and on a request, under typed keys instead of strings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from aiohttp import web

from ..domain.values import Origin
from ..realtime.live import LiveSockets
from ..services.access import CustomerAccess, DeviceAccess
from ..services.approvals import Approvals
from ..services.audit_log import AuditLog
from ..services.commands import Commands
from ..services.delivery import Delivery
from ..services.device_sockets import DeviceSockets
from ..services.devices import Devices
from ..services.enrollment import Enrollment
from ..services.heartbeats import Heartbeats
from ..services.portal_sockets import PortalSockets
from ..services.sessions import Sessions
from ..services.system import System
from .deadlines import Deadlines


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases that handlers call, one object each. The composition root fills it."""

    customer_access: CustomerAccess
    device_access: DeviceAccess
    enrollment: Enrollment
    heartbeats: Heartbeats
    delivery: Delivery
    devices: Devices
    sessions: Sessions
    commands: Commands
    approvals: Approvals
    audit: AuditLog
    system: System
    live: LiveSockets
    device_sockets: DeviceSockets
    portal_sockets: PortalSockets


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """The settings that the HTTP layer itself needs.

    `cors_origins` are browser origins (`https://host[:port]`), `request_timeout_s` bounds a whole request in seconds
    (contract section 7), `socket_rate` is messages a minute on one socket (0 for no limit).
    """

    version: str
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    request_timeout_s: float = 50.0
    socket_rate: int = 1200


# What a task is told that is cancelled since its request took too long.
OVERDUE = "overdue"

REQUESTS = web.AppKey("REQUESTS", Deadlines[asyncio.Task[None]])
SERVICES = web.AppKey("SERVICES", Services)
OPTIONS = web.AppKey("OPTIONS", ApiOptions)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)
ORIGIN = web.RequestKey("ORIGIN", Origin)
# For the access log: the code of an error answer, and with which one the gateway ended a socket.
ERROR_CODE = web.ResponseKey("ERROR_CODE", str)
CLOSE_CODE = web.ResponseKey("CLOSE_CODE", int)
