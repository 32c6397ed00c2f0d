"""Records for tests of the rules, which know no storage."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from aizen_gateway.domain.clock import EPOCH
from aizen_gateway.domain.records import Command
from aizen_gateway.domain.values import ActorType, CommandKind, CommandStatus


def command(status: CommandStatus = CommandStatus.QUEUED, **changes: Any) -> Command:
    """A command, claimed once at the epoch for 60 s by `token`, that may run for 300 s and wait for an hour."""
    made = Command(
        id=UUID(int=1),
        customer_id=UUID(int=2),
        device_uid=UUID(int=3),
        device_id="router-1",
        session_id=UUID(int=4),
        type="ping",
        kind=CommandKind.DIAGNOSTIC,
        parameters={},
        digest="sha256:",
        priority=5,
        status=status,
        attempt=1,
        max_deliveries=5,
        timeout_ms=300_000,
        proposed_by="user",
        proposed_by_type=ActorType.USER,
        reason=None,
        retry_of=None,
        request_id=None,
        approval=None,
        place=1,
        created_at=EPOCH,
        expires_at=EPOCH + timedelta(hours=1),
        claim_by=EPOCH + timedelta(hours=1),
        due_at=None,
        claim_token="token",
        claimed_at=EPOCH,
        visible_until=EPOCH + timedelta(seconds=60),
        deadline_at=EPOCH + timedelta(seconds=300),
        cancel_reason=None,
        completed_at=None,
        presumed=False,
        result=None,
        result_digest=None,
    )
    return replace(made, **changes)
