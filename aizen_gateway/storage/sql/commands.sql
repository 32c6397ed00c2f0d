-- name: insert_command
-- A new command; one that is queued at once gets its place in the queue here.
insert into aizen.commands (
    id, customer_id, device_uid, device_id, session_id, type, kind, parameters, digest, priority, status,
    max_deliveries, timeout_ms, proposed_by, proposed_by_type, reason, retry_of, request_id,
    created_at, expires_at, claim_by, due_at, place)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
    case when $11 = 'queued' then nextval('aizen.queue_place') end)
returning *

-- name: save_command
-- Everything about a command that can change; the caller holds its row. A command gets its place when first queued.
update aizen.commands set
    status = $2, attempt = $3, approval = $4, claim_by = $5, due_at = $6, claim_token = $7, claimed_at = $8,
    visible_until = $9, deadline_at = $10, cancel_reason = $11, completed_at = $12, presumed = $13,
    result = $14, result_digest = $15,
    place = case when $2 = 'queued' and place is null then nextval('aizen.queue_place') else place end
where id = $1
returning *

-- name: lock_command
-- One command of a session, held until the transaction ends.
select * from aizen.commands where id = $1 and session_id = $2 and customer_id = $3 for update

-- name: lock_command_of_device
-- One command of one life of a device, held until the transaction ends.
select * from aizen.commands where id = $1 and device_uid = $2 for update

-- name: read_command_of_device
select * from aizen.commands where id = $1 and device_uid = $2

-- name: read_command
select * from aizen.commands where id = $1

-- name: read_commands
-- Commands by id, in no order.
select * from aizen.commands where id = any($1::uuid[])

-- name: commands_of_session
-- In the order of their submission.
select * from aizen.commands where session_id = $1 order by number

-- name: lock_open_commands_of_session
-- Locked in the order in which everybody locks several commands, returned in the order of their submission.
with locked as (
    select * from aizen.commands
    where session_id = $1 and status in ('pending_approval', 'queued', 'claimed', 'cancel_requested')
    order by id
    for update
)
select * from locked order by number

-- name: count_open_commands
select count(*) from aizen.commands
where device_uid = $1 and status in ('pending_approval', 'queued', 'claimed', 'cancel_requested')

-- name: commands_of_device
-- A page of a device's commands, newest first.
select * from aizen.commands
where device_uid = $1
  and ($2::text is null or status = $2)
  and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
order by created_at desc, id desc
limit $5

-- name: confirm_claims
-- Writes claims that Redis has leased to the truth, with their audit records and outbox rows, in one statement.
-- Whatever the index believed, a command is handed out only when it is queued, or its lease has run out and time
-- has not ended it, and a delivery is left, and its time to be claimed is not over.
-- $1 ids, $2 claim tokens, $3 device uid, $4 now, $5 lease end, $6 device id, $7 request id, $8 ip, $9 user agent
with wanted as (
    select * from unnest($1::uuid[], $2::text[]) with ordinality as w (id, token, n)
), locked as (
    -- Whoever locks several commands does so in the order of their ids: a claim and the end of a session never wait
    -- for each other.
    select c.id from aizen.commands c join wanted w on w.id = c.id order by c.id for update of c
), claimed as (
    update aizen.commands c set
        status = 'claimed', attempt = attempt + 1, claim_token = w.token, claimed_at = $4, visible_until = $5,
        deadline_at = $4 + c.timeout_ms * interval '1 millisecond',
        due_at = least($5, $4 + c.timeout_ms * interval '1 millisecond')
    from wanted w join locked l on l.id = w.id
    where c.id = w.id
      and c.device_uid = $3
      and (c.status = 'queued'
           or (c.status = 'claimed' and c.visible_until <= $4 and c.deadline_at >= c.visible_until))
      and c.attempt < c.max_deliveries
      and c.claim_by > $4
    returning c.*, w.n
), audited as (
    insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type,
                             session_id, command_id, ip, user_agent, request_id, details)
    select $4, customer_id, 'command.claimed', 'command', id::text, $6, 'device', session_id, id, $8, $9, $7,
           jsonb_build_object('attempt', attempt)
    from claimed
), announced as (
    insert into aizen.outbox (subject, subject_id, change, request_id)
    select 'command', id, 'claimed', $7 from claimed order by n
    returning id as version, subject_id
)
select claimed.*, announced.version
from claimed join announced on announced.subject_id = claimed.id
order by claimed.n

-- name: lock_due_commands
-- Commands that time has changed by $1; other instances skip them.
select * from aizen.commands
where due_at <= $1
order by due_at
limit $2
for update skip locked

-- name: live_commands
-- A page of the commands that must be in Redis, in the order of their ids.
select * from aizen.commands
where status in ('queued', 'claimed', 'cancel_requested') and ($1::uuid is null or id > $1)
order by id
limit $2

-- name: lock_open_commands_of_device
select * from aizen.commands
where device_uid = $1 and status in ('pending_approval', 'queued', 'claimed', 'cancel_requested')
order by id
for update

-- name: extend_lease
update aizen.commands set visible_until = $2, due_at = $3 where id = $1

-- name: count_by_status
-- How many commands have not ended, of all customers, by status.
select status, count(*) from aizen.commands
where status in ('pending_approval', 'queued', 'claimed', 'cancel_requested')
group by status
