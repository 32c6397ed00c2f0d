-- name: try_idempotency_lock
-- Whether this transaction is the only one under way with the key.
select pg_try_advisory_xact_lock(hashtextextended($1, 0))

-- name: read_idempotency
select body_digest, status, response from aizen.idempotency
where customer_id = $1 and endpoint = $2 and key = $3 and created_at > $4

-- name: keep_idempotency
-- The first answer, in the transaction of what it tells; one that is too old to count is replaced.
insert into aizen.idempotency (customer_id, endpoint, key, body_digest, status, response, created_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (customer_id, endpoint, key) do update set
    body_digest = excluded.body_digest, status = excluded.status,
    response = excluded.response, created_at = excluded.created_at

-- name: forget_idempotency
-- Keys past their time, in small batches.
delete from aizen.idempotency
where ctid in (select ctid from aizen.idempotency where created_at < $1 limit $2)
