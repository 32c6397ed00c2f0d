"""What every test can ask for. Fixtures live in `tests.support`, a module a subject."""

from __future__ import annotations

pytest_plugins = [
    "tests.support.servers",
    "tests.support.gateway",
    "tests.support.processes",
    "tests.support.supabase",
    "tests.support.inside",
    "tests.support.bench",
    "tests.support.line",
]
