-- name: insert_outbox
-- What a transaction changed, in the order in which it is to be announced.
insert into aizen.outbox (subject, subject_id, change, request_id)
select subject, subject_id, change, $4
from unnest($1::text[], $2::uuid[], $3::text[]) with ordinality as u (subject, subject_id, change, n)
order by n
returning id

-- name: delete_outbox
-- Rows that were dispatched.
delete from aizen.outbox where id = any($1::bigint[])

-- name: left_in_outbox
-- Rows whose own process did not dispatch them in time; locked, so that one instance takes each.
select id, subject, subject_id, change, request_id
from aizen.outbox
where created_at < now() - $1 * interval '1 millisecond'
order by id
limit $2
for update skip locked

-- name: outbox_lag
-- How many rows wait, and the age of the oldest in seconds.
select count(*) as waiting, coalesce(extract(epoch from now() - min(created_at)), 0)::float8 as oldest
from aizen.outbox
