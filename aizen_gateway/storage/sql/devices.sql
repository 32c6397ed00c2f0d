-- Whatever is asked for one device finds it by its key alone, and then looks what else must hold: with all conditions
-- at once the server may take an index of another one of them, which for a small table looks as good.

-- name: insert_device
-- A new device with its activation code; nothing when one of this id is alive. Its credentials are younger than those
-- of all earlier lives of the id, which Redis still holds for void.
insert into aizen.devices (uid, id, customer_id, name, location, activation_hash, activation_expires_at,
                           credential_epoch)
values ($1, $2, $3, $4, $5, $6, $7,
    (select coalesce(max(credential_epoch), 0) + 1 from aizen.devices where id = $2))
on conflict (id) where deleted_at is null do nothing
returning *

-- name: lock_device_by_id
-- The living device of this id, whoever owns it, held until the transaction ends. Not held so that rows that refer
-- to it have to wait: whoever adds a command holds its session, for which a suspension that holds the device waits.
with found as materialized (
    select uid, deleted_at from aizen.devices where id = $1
), held as materialized (
    select * from aizen.devices where uid = (select uid from found where deleted_at is null) for no key update
)
select * from held where deleted_at is null

-- name: lock_device
-- A customer's living device, held as by lock_device_by_id. Another customer's is not even waited for.
with found as materialized (
    select uid, customer_id, deleted_at from aizen.devices where id = $1
), held as materialized (
    select * from aizen.devices
    where uid = (select uid from found where customer_id = $2 and deleted_at is null)
    for no key update
)
select * from held where deleted_at is null

-- name: read_device
with found as materialized (select * from aizen.devices where id = $1)
select * from found where customer_id = $2 and deleted_at is null

-- name: read_device_by_id
with found as materialized (select * from aizen.devices where id = $1)
select * from found where deleted_at is null

-- name: read_device_by_uid
select * from aizen.devices where uid = $1

-- name: renew_activation
-- A new activation code: the earlier one, the secret and all sessions signed in with it are void.
update aizen.devices set
    activation_hash = $2, activation_expires_at = $3, activation_failures = 0, activation_used_at = null,
    secret_hash = null, secret_used_at = null, credential_epoch = credential_epoch + 1,
    name = coalesce($4, name), location = coalesce($5, location)
where uid = $1
returning *

-- name: count_activation_failure
update aizen.devices set activation_failures = activation_failures + 1 where uid = $1

-- name: register_device
-- The code is used; the secret is new, and one given before with the same code is void.
update aizen.devices set
    secret_hash = $2, secret_used_at = null, activation_used_at = coalesce(activation_used_at, $3),
    activation_failures = 0, registered_at = $3, credential_epoch = credential_epoch + 1,
    name = coalesce($4, name), metadata = coalesce($5, metadata)
where uid = $1
returning *

-- name: use_secret
-- The secret has been used: from now on the activation code is worth nothing.
update aizen.devices set secret_used_at = $2 where uid = $1 and secret_hash = $3 and secret_used_at is null

-- name: update_device
update aizen.devices set name = $2, location = $3 where uid = $1 returning *

-- name: suspend_device
update aizen.devices set suspended_at = $2, credential_epoch = credential_epoch + 1, presence = 'offline', connection = 'none'
where uid = $1
returning *

-- name: resume_device
update aizen.devices set suspended_at = null where uid = $1 returning *

-- name: delete_device
-- Its id is free again; its sessions and commands stay as history.
update aizen.devices set deleted_at = $2, credential_epoch = credential_epoch + 1, presence = 'offline', connection = 'none',
    secret_hash = null, activation_hash = null
where uid = $1
returning *

-- name: list_devices
-- A page of a customer's devices by status and search text, newest first, with the number of all that fit.
select *, count(*) over () as total from (
    select d.*, case when suspended_at is not null then 'suspended'
                     when registered_at is null then 'provisioned'
                     else presence end as shown
    from aizen.devices d
    where customer_id = $1 and deleted_at is null
      and ($3::text is null or position(lower($3) in lower(id)) > 0 or position(lower($3) in lower(name)) > 0
           or position(lower($3) in lower(coalesce(location, ''))) > 0)
) devices
where $2::text is null or shown = $2
order by created_at desc, uid
limit $4 offset $5

-- name: count_devices
select count(*) from (
    select case when suspended_at is not null then 'suspended'
                when registered_at is null then 'provisioned'
                else presence end as shown
    from aizen.devices
    where customer_id = $1 and deleted_at is null
      and ($3::text is null or position(lower($3) in lower(id)) > 0 or position(lower($3) in lower(name)) > 0
           or position(lower($3) in lower(coalesce(location, ''))) > 0)
) devices
where $2::text is null or shown = $2

-- name: devices_with_session
-- Devices of customers, each with its open session and the number of its commands that wait to be claimed.
select w.place, d.*,
    (select case when s.expires_at > w.now then s.id end from aizen.sessions s
        where s.device_uid = d.uid and s.status in ('pending_approval', 'active')) as active_session,
    (select count(*) filter (where c.status = 'queued' and c.claim_by > w.now) from aizen.commands c
        where c.device_uid = d.uid
          and c.status in ('pending_approval', 'queued', 'claimed', 'cancel_requested')) as pending_commands
from unnest($1::int[], $2::text[], $3::uuid[], $4::timestamptz[]) as w (place, id, customer_id, now)
cross join lateral (select * from aizen.devices where id = w.id offset 0) d
where d.customer_id = w.customer_id and d.deleted_at is null

-- name: save_heartbeats
-- Heartbeats written behind, many in one statement; an older one never replaces a newer one. JSON comes as text: in
-- an array of json, a list would count as a dimension of the array.
update aizen.devices d set
    last_seen_at = greatest(d.last_seen_at, b.at), last_heartbeat_at = b.at,
    metrics = b.metrics::json, diagnostics = b.diagnostics::json
from unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[]) as b (uid, at, metrics, diagnostics)
where d.uid = b.uid and (d.last_heartbeat_at is null or d.last_heartbeat_at < b.at)

-- name: save_seen
-- When devices were last in touch, many in one statement.
update aizen.devices d set last_seen_at = b.at
from unnest($1::uuid[], $2::timestamptz[]) as b (uid, at)
where d.uid = b.uid and (d.last_seen_at is null or d.last_seen_at < b.at)

-- name: change_presence
-- Writes a presence or a connection that differs; nothing when both are the same already, or when a later change is
-- known. One that is suspended is offline, whatever was seen of it before.
with before as (
    select uid, presence, connection, presence_at, suspended_at, deleted_at from aizen.devices where uid = $1
    for no key update
), after as (
    update aizen.devices d set presence = $2, connection = $4, presence_at = $3,
        last_seen_at = greatest(d.last_seen_at, $5)
    from before
    where d.uid = before.uid
      and before.deleted_at is null and before.suspended_at is null
      and (before.presence_at is null or before.presence_at < $3)
    returning d.*
)
select after.*, (before.presence, before.connection) <> (after.presence, after.connection) as changed
from after join before using (uid)

-- name: credentials_voided
-- A page of the moments after ($1, $2) at which credentials of devices became void, each with what the device is now:
-- the newest life of its id.
select v.at as voided_at, v.id as audit_id, d.*
from (
    select at, id, resource_id from aizen.audit
    where (at, id) > ($1::timestamptz, $2::bigint)
      and action in ('device.registered', 'device.suspended', 'device.secret_rotated', 'device.deleted')
    order by at, id
    limit $3
) v
cross join lateral (
    select * from aizen.devices where id = v.resource_id order by credential_epoch desc limit 1
) d
order by v.at, v.id

-- name: devices_present
-- A page of devices that are not offline, for a presence index that was lost.
select uid, id, presence, connection from aizen.devices
where (presence <> 'offline' or connection <> 'none') and deleted_at is null and ($1::uuid is null or uid > $1)
order by uid
limit $2

-- name: list_devices_for_operator
select * from aizen.devices where customer_id = $1 and deleted_at is null order by created_at, uid
