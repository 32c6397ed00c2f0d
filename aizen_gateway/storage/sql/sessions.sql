-- name: insert_session
-- A new session. The unique index lets one open session a device be.
insert into aizen.sessions (id, customer_id, device_uid, device_id, type, status, description,
                            created_by, created_by_type, created_at, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
returning *

-- name: save_session
-- Everything about a session that can change; the caller holds its row.
update aizen.sessions set status = $2, closed_at = $3, approval = $4 where id = $1 returning *

-- name: lock_session
select * from aizen.sessions where id = $1 and customer_id = $2 for update

-- name: lock_sessions_at_hand
-- Those of several sessions that nobody else holds, held until the transaction ends; in the order in which everybody
-- locks several.
select id from aizen.sessions where id = any($1::uuid[]) order by id for update skip locked

-- name: read_session
select * from aizen.sessions where id = $1 and customer_id = $2

-- name: read_session_by_id
select * from aizen.sessions where id = $1

-- name: lock_open_session_of_device
select * from aizen.sessions where device_uid = $1 and status in ('pending_approval', 'active') for update

-- name: list_sessions
-- A page of a customer's sessions, newest first.
select * from aizen.sessions
where customer_id = $1
  and ($2::text is null or status = $2)
  and ($3::text is null or device_id = $3)
  and ($4::timestamptz is null or (created_at, id) < ($4, $5::uuid))
order by created_at desc, id desc
limit $6

-- name: lock_due_sessions
-- Open sessions whose time is over by $1; other instances skip them.
select * from aizen.sessions
where closed_at is null and expires_at <= $1
order by expires_at
limit $2
for update skip locked

-- name: waiting_for_a_person
-- A page of what waits for a decision and may still be decided at $2, newest first, sessions and commands alike.
select kind, id, created_at from (
    select 'session' as kind, id, created_at from aizen.sessions
    where customer_id = $1 and status = 'pending_approval' and expires_at > $2
    union all
    select 'command', c.id, c.created_at from aizen.commands c
    where c.customer_id = $1 and c.status = 'pending_approval' and c.approval is null and c.claim_by > $2
      and (c.kind = 'remediation' or not exists (
          select 1 from aizen.sessions s where s.id = c.session_id and s.status = 'pending_approval'))
) waiting
where $3::timestamptz is null or (created_at, id) < ($3, $4::uuid)
order by created_at desc, id desc
limit $5

-- name: read_sessions
-- Sessions by id, in no order.
select * from aizen.sessions where id = any($1::uuid[])
