-- name: insert_audit
-- The audit records of one transaction, all in one statement.
insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type,
                         session_id, command_id, ip, user_agent, request_id, details)
select * from unnest(
    $1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::uuid[], $9::uuid[], $10::text[], $11::text[], $12::text[], $13::jsonb[])

-- name: list_audit
-- A customer's records, newest first, below a record id.
select id, at, action, resource, resource_id, actor, actor_type, command_id, ip, user_agent, request_id, details
from aizen.audit
where customer_id = $1
  and ($2::bigint is null or id < $2)
  and ($3::text is null or action = $3)
  and ($4::text is null or resource = $4)
order by id desc
limit $5

-- name: transcript
-- Everything that happened in a session, in order.
select id, at, action, resource, resource_id, actor, actor_type, command_id, ip, user_agent, request_id, details
from aizen.audit
where session_id = $1 and customer_id = $2
order by id
limit $3
