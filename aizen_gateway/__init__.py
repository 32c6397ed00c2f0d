"""The API gateway of Aizen vNE: REST and WebSockets for device agents and the customer portal."""

from __future__ import annotations

__version__ = "0.1.0"
