"""The queue's promises on a cluster: the tests of the queue that need several keys, instances or a lost Redis."""

# What is imported is collected here, and runs against the Redis of this directory.
# ruff: noqa: F401

from __future__ import annotations

from tests.device.test_session_tokens import (
    test_a_device_whose_token_redis_lost_signs_in_again,
    test_a_long_poll_of_a_session_that_ends_is_refused_at_once,
    test_a_token_is_good_on_every_instance,
    test_the_calls_of_a_device_are_limited_on_all_instances_together,
    test_what_ends_a_devices_sessions_ends_them_at_once_on_every_instance,
)
from tests.queue.test_cancel_release import (
    test_a_claimed_command_is_asked_to_stop_and_extending_tells_the_device,
    test_a_command_that_nobody_claimed_is_canceled_at_once_and_never_handed_out,
    test_a_released_command_keeps_its_place,
    test_a_released_command_may_be_claimed_at_another_instance,
    test_deleting_a_device_cancels_everything_of_it,
)
from tests.queue.test_claims import (
    test_a_claimed_command_is_not_handed_out_again,
    test_commands_submitted_through_two_instances_keep_their_order,
)
from tests.queue.test_concurrency import (
    lines,
    test_many_devices_at_once_get_their_own_commands,
    test_of_many_claims_at_once_no_two_get_the_same_command,
)
from tests.queue.test_durability import (
    test_a_finished_command_leaves_nothing_in_redis,
    test_emptying_redis_ends_no_claim,
    test_emptying_redis_in_the_middle_of_everything_loses_nothing_that_was_accepted,
    test_emptying_redis_loses_no_command_and_keeps_their_order,
    test_every_key_in_redis_has_an_end,
    test_redis_may_be_emptied_again_while_it_is_being_filled,
)
from tests.queue.test_expiry_and_timeouts import (
    test_an_expired_command_shows_as_expired_within_ten_seconds,
)
from tests.queue.test_leases import (
    test_a_claim_on_one_instance_and_an_extension_on_another_are_of_one_lease,
    test_a_lapsed_lease_is_redelivered_at_another_instance,
    test_a_redelivered_command_keeps_its_original_place,
    test_a_stuck_command_never_blocks_the_others,
)
from tests.queue.test_long_poll import (
    test_a_poll_is_answered_when_a_command_is_approved,
    test_a_poll_is_answered_when_a_command_is_submitted_at_another_instance,
    test_a_poll_is_answered_when_a_lease_runs_out,
    test_many_commands_at_once_answer_many_polls_with_one_each,
)
from tests.queue.test_results import (
    test_a_late_result_counts_after_the_command_went_back_to_the_queue,
    test_a_result_may_come_to_another_instance_than_the_claim,
    test_an_older_token_reports_nothing_and_the_newer_lease_is_not_touched,
    test_the_answer_names_the_next_command_and_claims_it_not,
    test_the_same_result_again_is_a_duplicate_and_changes_nothing,
)
