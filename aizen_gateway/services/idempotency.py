"""Idempotency keys, kept in the transaction of what they stand for: a repeat can never do it twice (section 1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from ..domain.errors import IdempotencyInProgress, IdempotencyKeyReused
from ..domain.sameness import fingerprint
from ..domain.values import IDEMPOTENCY_TTL_S, Answer, IdempotencyKey
from ..storage import queries
from ..storage.postgres import Transaction

_SQL = queries.load("idempotency")


async def once(
    transaction: Transaction,
    customer_id: UUID,
    key: IdempotencyKey | None,
    work: Callable[[], Awaitable[Answer]],
) -> Answer:
    """Do `work` and keep its answer under `key`, or bring back the answer that was kept.

    A failure of `work` keeps nothing. Raises `IdempotencyKeyReused` for another body, `IdempotencyInProgress` while
    the first call is under way.
    """
    if key is None:
        return await work()
    lock = f"{customer_id} {key.endpoint} {key.key}"
    if not await transaction.connection.fetchval(_SQL["try_idempotency_lock"], lock):
        raise IdempotencyInProgress(retry_after=1)
    digest = fingerprint(key.body)
    oldest = transaction.now - timedelta(seconds=IDEMPOTENCY_TTL_S)
    kept = await transaction.fetchrow(_SQL["read_idempotency"], customer_id, key.endpoint, key.key, oldest)
    if kept is not None:
        if kept["body_digest"] != digest:
            raise IdempotencyKeyReused
        return Answer(kept["status"], kept["response"], replayed=True)
    answer = await work()
    await transaction.execute(
        _SQL["keep_idempotency"],
        customer_id,
        key.endpoint,
        key.key,
        digest,
        answer.status,
        answer.body,
        transaction.now,
    )
    return answer
