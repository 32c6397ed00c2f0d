"""What every test can ask for. Fixtures live in `tests.support`, a module a subject."""

from __future__ import annotations

import signal

from hypothesis import settings

# Who runs the tests in the background has Ctrl-C and a closed terminal ignored, and so would whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The machine is shared: how long an example took says nothing.
settings.register_profile("shared", deadline=None, max_examples=50)
settings.load_profile("shared")

pytest_plugins = [
    "tests.support.servers",
    "tests.support.gateway",
    "tests.support.processes",
    "tests.support.supabase",
    "tests.support.inside",
    "tests.support.bench",
    "tests.support.line",
    "tests.support.portal",
    "tests.support.pushes",
    "tests.support.agents",
    "tests.support.proxy",
    "tests.support.cluster",
    "tests.support.sentinel",
    "tests.support.nginx",
    "tests.support.pgbouncer",
]
