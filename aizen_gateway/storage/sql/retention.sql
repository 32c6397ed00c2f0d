-- name: old_sessions
-- Ended sessions that closed before $1 and whose commands have all ended, a small batch.
select id from aizen.sessions s
where closed_at < $1
  and not exists (
      select 1 from aizen.commands c
      where c.session_id = s.id and c.status in ('pending_approval', 'queued', 'claimed', 'cancel_requested'))
order by closed_at
limit $2
for update skip locked

-- name: delete_commands_of_sessions
delete from aizen.commands where session_id = any($1::uuid[])

-- name: delete_sessions
delete from aizen.sessions where id = any($1::uuid[])

-- name: delete_old_audit
-- Audit records from before $1, a small batch.
delete from aizen.audit
where id in (select id from aizen.audit where at < $1 order by at limit $2)

-- name: export_audit
-- Audit records above an id, in order, of one customer or of all.
select id, customer_id, at, action, resource, resource_id, actor, actor_type, session_id, command_id, ip, user_agent,
       request_id, details
from aizen.audit
where id > $1 and ($2::uuid is null or customer_id = $2)
  and ($3::timestamptz is null or at >= $3) and ($4::timestamptz is null or at < $4)
order by id
limit $5
