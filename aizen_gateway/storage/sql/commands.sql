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
-- Of each: $1 id, $2 claim token, $3 device uid, $4 now, $5 lease end, $6 device id, $7 request id, $8 ip, $9 user agent
with wanted as (
    select * from unnest(
        $1::uuid[], $2::text[], $3::uuid[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
        $9::text[]) with ordinality as w (id, token, device_uid, now, lease_end, device, request_id, ip, agent, n)
), locked as (
    -- Whoever locks several commands does so in the order of their ids: a claim and the end of a session never wait
    -- for each other. Found by nothing but their ids, which are few: not by an index of all that wait.
    select c.* from aizen.commands c where c.id = any($1) order by c.id for update of c
), claimed as (
    update aizen.commands c set
        status = 'claimed', attempt = l.attempt + 1, claim_token = w.token, claimed_at = w.now,
        visible_until = w.lease_end,
        deadline_at = w.now + l.timeout_ms * interval '1 millisecond',
        due_at = least(w.lease_end, w.now + l.timeout_ms * interval '1 millisecond')
    from wanted w join locked l on l.id = w.id
    where c.id = l.id
      and l.device_uid = w.device_uid
      and (l.status = 'queued'
           or (l.status = 'claimed' and l.visible_until <= w.now and l.deadline_at >= l.visible_until))
      and l.attempt < l.max_deliveries
      and l.claim_by > w.now
    returning c.*, w.n, w.now, w.device, w.request_id as claim_request_id, w.ip, w.agent
), audited as (
    insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type,
                             session_id, command_id, ip, user_agent, request_id, details)
    select now, customer_id, 'command.claimed', 'command', id::text, device, 'device', session_id, id, ip, agent,
           claim_request_id, jsonb_build_object('attempt', attempt)
    from claimed order by n
), announced as (
    insert into aizen.outbox (subject, subject_id, change, request_id)
    select 'command', id, 'claimed', claim_request_id from claimed order by n
    returning id as version, subject_id
)
select claimed.*, announced.version
from claimed join announced on announced.subject_id = claimed.id
order by claimed.n

-- name: submit_commands
-- New commands of several callers, with their audit records and outbox rows. The sessions in $19 are locked. An order
-- for a session that has ended, or for a device that has no room, is left out: its caller finds out why by itself.
-- Of each: $1 id, $2 session, $3 customer, $4 type, $5 kind, $6 parameters, $7 digest, $8 priority, $9 time-out ms,
-- $10 deliveries, $11 expiry or null for the session's end, $12 proposer, $13 its type, $14 reason, $15 now,
-- $16 request id, $17 ip, $18 user agent. $20 how many open commands a device may have
with orders as (
    select * from unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::smallint[], $9::int[],
        $10::smallint[], $11::timestamptz[], $12::text[], $13::text[], $14::text[], $15::timestamptz[], $16::text[],
        $17::text[], $18::text[]) with ordinality as o (id, session_id, customer_id, type, kind, parameters, digest,
        priority, timeout_ms, deliveries, expires_at, proposer, proposer_type, reason, now, request_id, ip, agent, n)
), held as materialized (
    -- Found by nothing but their ids, as in confirm_claims.
    select * from aizen.sessions where id = any($19::uuid[])
), fitting as materialized (
    select o.*, s.device_uid, s.device_id, least(o.expires_at, s.expires_at) as ends,
        o.kind = 'remediation' or s.status = 'pending_approval' as waits,
        row_number() over (partition by s.device_uid order by o.n) + (
            select count(*) from aizen.commands c
            where c.device_uid = s.device_uid
              and c.status in ('pending_approval', 'queued', 'claimed', 'cancel_requested')) as nth
    from orders o join held s on s.id = o.session_id and s.customer_id = o.customer_id
    where s.status in ('pending_approval', 'active') and s.expires_at > o.now
    order by o.n
), placed as (
    insert into aizen.commands (
        id, customer_id, device_uid, device_id, session_id, type, kind, parameters, digest, priority, status,
        max_deliveries, timeout_ms, proposed_by, proposed_by_type, reason, request_id,
        created_at, expires_at, claim_by, due_at, place)
    select id, customer_id, device_uid, device_id, session_id, type, kind, parameters::json, digest, priority,
        case when waits then 'pending_approval' else 'queued' end,
        deliveries, timeout_ms, proposer, proposer_type, reason, request_id, now, ends, ends, ends,
        case when not waits then nextval('aizen.queue_place') end
    from fitting where nth <= $20
    returning *
), audited as (
    insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type,
                             session_id, command_id, ip, user_agent, request_id, details)
    select p.created_at, p.customer_id, 'command.submitted', 'command', p.id::text, p.proposed_by, p.proposed_by_type,
           p.session_id, p.id, f.ip, f.agent, p.request_id,
           jsonb_build_object('type', p.type, 'digest', p.digest, 'status', p.status)
    from placed p join fitting f on f.id = p.id order by p.number
), announced as (
    insert into aizen.outbox (subject, subject_id, change, request_id)
    -- In a session that waits, a diagnostic needs nothing but the session's own approval.
    select 'command', id,
           case when kind = 'remediation' then 'proposed' else 'submitted' end, request_id
    from placed order by number
    returning id as version, subject_id, change
)
select placed.*, announced.version, announced.change
from placed join announced on announced.subject_id = placed.id

-- name: lock_commands
-- Several commands, held until the transaction ends.
select c.* from aizen.commands c where c.id = any($1::uuid[]) order by c.id for update of c

-- name: save_results
-- Results of several locked commands, with their audit records and outbox rows.
-- Of each: $1 id, $2 status, $3 completed at, $4 result, $5 its digest, $6 device id, $7 request id, $8 ip,
-- $9 user agent, $10 details of the audit record
with results as (
    select * from unnest(
        $1::uuid[], $2::text[], $3::timestamptz[], $4::text[], $5::bytea[], $6::text[], $7::text[], $8::text[],
        $9::text[], $10::jsonb[]) with ordinality
        as r (id, status, at, result, digest, device, request_id, ip, agent, details, n)
), saved as (
    update aizen.commands c set
        status = r.status, completed_at = r.at, result = r.result::json, result_digest = r.digest, presumed = false,
        due_at = null
    from results r
    where c.id = r.id
    returning c.customer_id, c.session_id, r.*
), audited as (
    insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type,
                             session_id, command_id, ip, user_agent, request_id, details)
    select at, customer_id, 'command.' || status, 'command', id::text, device, 'device', session_id, id, ip, agent,
           request_id, details
    from saved order by n
), announced as (
    insert into aizen.outbox (subject, subject_id, change, request_id)
    select 'command', id, 'updated', request_id from saved order by n
    returning id as version, subject_id
)
select subject_id as id, version from announced

-- name: lock_due_commands
-- Commands that time has changed by $1; other instances skip them.
select * from aizen.commands
where due_at <= $1
order by due_at
limit $2
for update skip locked

-- name: live_commands
-- A page of the commands that must be in Redis, in the order in which they are handed out.
select * from aizen.commands
where status in ('queued', 'claimed', 'cancel_requested') and (priority, place) > ($1::smallint, $2::bigint)
order by priority, place
limit $3

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
