"""The command line: run the gateway, apply the schema, try everything on one machine, and what operators do."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
