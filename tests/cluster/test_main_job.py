"""The main job on a cluster, word for word."""

# What is imported is collected here, and runs against the Redis of this directory.
# ruff: noqa: F401

from __future__ import annotations

from tests.sockets.test_first_steps import (
    test_a_command_is_pushed_to_the_device_and_a_portal_sees_every_state,
)
from tests.test_main_job import (
    test_a_diagnostic_reaches_the_device_and_its_result_comes_back,
    test_a_remediation_runs_only_after_another_person_approved_it,
)
