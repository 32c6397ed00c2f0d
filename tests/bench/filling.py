"""Many devices and a long history, made as the gateway would have made them, only faster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from redis.asyncio import Redis

from aizen_gateway.storage.postgres import Connection
from aizen_gateway.storage.queue import Queue
from aizen_gateway.storage.rows import command_of

# Registered devices have a row, a session's token and what is known of them in Redis. None of them is there: one that
# was would be looked at now and then.
_REGISTER = """
insert into aizen.devices (uid, id, customer_id, name, secret_hash, secret_used_at, registered_at)
select gen_random_uuid(), 'fill-' || n, $1, 'fill-' || n, sha256(n::text::bytea), now(), now()
from generate_series($2::int, $3::int) as n
"""
_SIGN_IN = """
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local tag = 'aizen:{fill-' .. n .. '}:'
  redis.call('HSET', tag .. 'sessions', redis.sha1hex(tostring(n)), '1:9999999999999:' .. ARGV[3] .. ':' .. ARGV[3])
  redis.call('HSET', tag .. 'device', 'uid', ARGV[3], 'seen', '1', 'presence', 'offline')
end
"""
_OLD_SESSIONS = """
insert into aizen.sessions (id, customer_id, device_uid, device_id, type, status, created_by, created_by_type,
                            created_at, expires_at, closed_at)
select gen_random_uuid(), $1, uid, id, 'diagnostic', 'completed', 'bench', 'user', now(), now(), now()
from aizen.devices where id = any($2)
"""
_OLD_COMMANDS = """
insert into aizen.commands (id, customer_id, device_uid, device_id, session_id, type, kind, parameters, digest,
                            priority, status, attempt, max_deliveries, timeout_ms, proposed_by, proposed_by_type,
                            place, created_at, expires_at, claim_by, claim_token, claimed_at, visible_until,
                            deadline_at, completed_at, result, result_digest)
select gen_random_uuid(), s.customer_id, s.device_uid, s.device_id, s.id, 'ping', 'diagnostic', '{"host":"192.0.2.1"}',
       'sha256:' || encode(sha256(n::text::bytea), 'hex'), 5, 'succeeded', 1, 5, 300000, 'bench', 'user',
       nextval('aizen.queue_place'), now() - interval '1 hour', now(), now(), n::text, now(), now(), now(), now(),
       '{"status":"success","output":"3 packets transmitted, 3 received"}', sha256(n::text::bytea)
from generate_series($1::int, $2::int) as n
join (select *, row_number() over (order by id) - 1 as number, count(*) over () as many
      from aizen.sessions where status = 'completed' and created_by = 'bench') as s on n % s.many = s.number
"""
_OPEN_SESSIONS = """
insert into aizen.sessions (id, customer_id, device_uid, device_id, type, status, created_by, created_by_type,
                            created_at, expires_at)
select gen_random_uuid(), $1, uid, id, 'diagnostic', 'active', 'bench', 'user', now(), now() + interval '1 day'
from aizen.devices where id = any(select 'fill-' || n from generate_series($2::int, $3::int) as n)
"""
_WAITING_COMMANDS = """
insert into aizen.commands (id, customer_id, device_uid, device_id, session_id, type, kind, parameters, digest,
                            priority, status, max_deliveries, timeout_ms, proposed_by, proposed_by_type, place,
                            created_at, expires_at, claim_by, due_at)
select gen_random_uuid(), customer_id, device_uid, device_id, id, 'ping', 'diagnostic', '{}', 'sha256:' || id, 5,
       'queued', 5, 300000, 'bench', 'user', nextval('aizen.queue_place'), now(), expires_at, expires_at, expires_at
from aizen.sessions
where status = 'active' and device_id = any(select 'fill-' || n from generate_series($1::int, $2::int) as n)
returning *
"""
# Rows of a statement, and devices of a script.
_SLICE = 50_000
_SCRIPT_SLICE = 1_000


async def register(database: Connection, valkey: Redis, customer_id: UUID, start: int, end: int) -> None:
    """Register the devices with the numbers from `start` up to `end`."""
    for first in range(start, end, _SLICE):
        await database.execute(_REGISTER, customer_id, first, min(end, first + _SLICE) - 1)
    for first in range(start, end, _SCRIPT_SLICE):
        last = min(end, first + _SCRIPT_SLICE) - 1
        await valkey.eval(_SIGN_IN, 0, first, last, str(customer_id))


async def finish(database: Connection, customer_id: UUID, device_ids: Sequence[str], start: int, end: int) -> None:
    """Give the devices a history of `end` commands in all, of which they have `start`."""
    if start == 0:
        await database.execute(_OLD_SESSIONS, customer_id, device_ids)
    for first in range(start, end, _SLICE):
        await database.execute(_OLD_COMMANDS, first, min(end, first + _SLICE) - 1)


async def keep_waiting(database: Connection, queue: Queue, customer_id: UUID, start: int, end: int) -> None:
    """Give the registered devices from `start` up to `end` an open session each, with a command that waits.

    It is in the index as well: a gateway would find out within a minute that it was not, and put it there while it is
    measured.
    """
    for first in range(start, end, _SCRIPT_SLICE):
        last = min(end, first + _SCRIPT_SLICE) - 1
        await database.execute(_OPEN_SESSIONS, customer_id, first, last)
        waiting = await database.fetch(_WAITING_COMMANDS, first, last)
        await asyncio.gather(*(queue.enqueue(command_of(row)) for row in waiting))
