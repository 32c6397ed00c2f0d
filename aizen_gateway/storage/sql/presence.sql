-- name: change_presences
-- As `change_presence`, for many devices, each once, with the outbox rows of those that are now different. Devices that
-- somebody else holds just now are left out, so that nobody waits for another's.
with wanted as (
    select *
    from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[])
        as w (uid, presence, connection, at, request_id)
), held as (
    -- Found by their keys alone, as in devices.sql.
    select uid, presence, connection, presence_at, suspended_at, deleted_at from aizen.devices where uid = any($1)
    for no key update skip locked
), before as (
    select uid, held.presence, held.connection
    from held join wanted w using (uid)
    where held.deleted_at is null and held.suspended_at is null
      and (held.presence_at is null or held.presence_at < w.at)
), after as (
    update aizen.devices d set presence = w.presence, connection = w.connection, presence_at = w.at,
        last_seen_at = greatest(d.last_seen_at, w.at)
    from before join wanted w using (uid)
    where d.uid = before.uid
    returning d.*
), told as (
    insert into aizen.outbox (subject, subject_id, change, request_id)
    select 'device', w.uid, 'presence', w.request_id
    from before join wanted w using (uid)
    where (before.presence, before.connection) <> (w.presence, w.connection)
    returning id, subject_id
)
select after.*, told.id as version from after left join told on told.subject_id = after.uid
