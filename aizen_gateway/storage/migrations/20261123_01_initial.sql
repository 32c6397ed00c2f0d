-- the whole of schema aizen: customers, members, devices, sessions, commands, audit, outbox, idempotency
-- depends:

-- migrate: apply

create schema if not exists aizen;

create table aizen.customers (
    id uuid primary key,
    name text not null,
    require_second_approver boolean not null default false,
    created_at timestamptz not null default now()
);

-- A user belongs to one customer: the token alone must say for whom it acts.
create table aizen.members (
    user_id uuid primary key,
    customer_id uuid not null references aizen.customers (id),
    role text not null check (role in ('owner', 'admin', 'viewer')),
    created_at timestamptz not null default now()
);
create index members_by_customer on aizen.members (customer_id, created_at);

-- `uid` is one life of a device: a deleted id may be provisioned again, and the new one sees nothing of the old.
-- `presence_at` is when the presence changed: of two changes that arrive in the wrong order the later one stays.
-- `credential_epoch` rises whenever all session tokens must die, so that a sign-in under way cannot outlive it.
create table aizen.devices (
    uid uuid primary key,
    id text not null check (id ~ '^[A-Za-z0-9][A-Za-z0-9_-]{2,63}$'),
    customer_id uuid not null references aizen.customers (id),
    name text not null,
    location text,
    metadata json,
    activation_hash bytea,
    activation_expires_at timestamptz,
    activation_failures integer not null default 0,
    activation_used_at timestamptz,
    secret_hash bytea,
    secret_used_at timestamptz,
    credential_epoch integer not null default 1,
    registered_at timestamptz,
    suspended_at timestamptz,
    deleted_at timestamptz,
    presence text not null default 'offline' check (presence in ('online', 'offline', 'error')),
    connection text not null default 'none' check (connection in ('websocket', 'polling', 'none')),
    presence_at timestamptz,
    last_seen_at timestamptz,
    last_heartbeat_at timestamptz,
    metrics json,
    diagnostics json,
    created_at timestamptz not null default now()
);
create unique index devices_alive on aizen.devices (id) where deleted_at is null;
create index devices_by_id on aizen.devices (id, credential_epoch);
create index devices_by_customer on aizen.devices (customer_id, created_at desc, uid) where deleted_at is null;

create table aizen.sessions (
    id uuid primary key,
    customer_id uuid not null references aizen.customers (id),
    device_uid uuid not null references aizen.devices (uid),
    device_id text not null,
    type text not null check (type in ('diagnostic', 'remediation')),
    status text not null
        check (status in ('pending_approval', 'active', 'rejected', 'completed', 'canceled', 'expired')),
    description text,
    created_by text not null,
    created_by_type text not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    closed_at timestamptz,
    approval jsonb
);
create unique index sessions_one_open on aizen.sessions (device_uid) where status in ('pending_approval', 'active');
create index sessions_by_customer on aizen.sessions (customer_id, created_at desc, id desc);
create index sessions_by_device on aizen.sessions (device_uid, created_at desc, id desc);
create index sessions_waiting on aizen.sessions (customer_id, created_at desc, id desc)
    where status = 'pending_approval';
create index sessions_by_end on aizen.sessions (closed_at) where closed_at is not null;
create index sessions_due on aizen.sessions (expires_at) where status in ('pending_approval', 'active');

create sequence aizen.queue_place;

-- `parameters` and `result` are json, not jsonb: the digest is of the numbers as they were written.
-- `claim_by` is the earliest of expiry, session end and approval end; `due_at` is when the sweep must look again.
-- `number` is the order of submission, which `created_at` cannot tell within a millisecond.
-- `place` is the position in the queue, given when the command is queued and kept by redeliveries.
create table aizen.commands (
    id uuid primary key,
    customer_id uuid not null references aizen.customers (id),
    device_uid uuid not null references aizen.devices (uid),
    device_id text not null,
    session_id uuid not null references aizen.sessions (id),
    type text not null,
    kind text not null check (kind in ('diagnostic', 'remediation')),
    parameters json not null,
    digest text not null,
    priority smallint not null check (priority between 1 and 10),
    status text not null check (status in (
        'pending_approval', 'queued', 'rejected', 'claimed', 'cancel_requested',
        'succeeded', 'failed', 'timed_out', 'canceled', 'expired', 'undeliverable')),
    attempt integer not null default 0,
    max_deliveries smallint not null,
    timeout_ms integer not null,
    proposed_by text not null,
    proposed_by_type text not null,
    reason text,
    retry_of uuid,
    request_id text,
    approval jsonb,
    number bigint generated always as identity,
    place bigint,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    claim_by timestamptz not null,
    due_at timestamptz,
    claim_token text,
    claimed_at timestamptz,
    visible_until timestamptz,
    deadline_at timestamptz,
    cancel_reason text,
    completed_at timestamptz,
    presumed boolean not null default false,
    result json,
    result_digest bytea
);
create index commands_by_session on aizen.commands (session_id, number);
create index commands_by_device on aizen.commands (device_uid, created_at desc, id desc);
create index commands_open on aizen.commands (device_uid)
    where status in ('pending_approval', 'queued', 'claimed', 'cancel_requested');
create index commands_due on aizen.commands (due_at) where due_at is not null;
create index commands_live on aizen.commands (id) where status in ('queued', 'claimed', 'cancel_requested');
create index commands_waiting on aizen.commands (customer_id, created_at desc, id desc)
    where status = 'pending_approval';

create table aizen.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null,
    customer_id uuid not null,
    action text not null,
    resource text not null,
    resource_id text not null,
    actor text not null,
    actor_type text not null,
    session_id uuid,
    command_id uuid,
    ip text,
    user_agent text,
    request_id text,
    details jsonb not null default '{}'
);
create index audit_by_customer on aizen.audit (customer_id, id desc);
create index audit_by_age on aizen.audit (at);
create index audit_by_session on aizen.audit (session_id, id) where session_id is not null;

-- What changed and must still be told to Redis: the relay makes Redis agree with the row and announces it.
create table aizen.outbox (
    id bigint generated always as identity primary key,
    subject text not null check (subject in ('command', 'session', 'device')),
    subject_id uuid not null,
    change text not null,
    request_id text,
    created_at timestamptz not null default now()
);

create table aizen.idempotency (
    customer_id uuid not null,
    endpoint text not null,
    key text not null,
    body_digest bytea not null,
    status smallint not null,
    response json not null,
    created_at timestamptz not null,
    primary key (customer_id, endpoint, key)
);
create index idempotency_by_age on aizen.idempotency (created_at);

-- The second lock behind a schema that PostgREST does not expose: no policy, so only the owner reads.
alter table aizen.customers enable row level security;
alter table aizen.members enable row level security;
alter table aizen.devices enable row level security;
alter table aizen.sessions enable row level security;
alter table aizen.commands enable row level security;
alter table aizen.audit enable row level security;
alter table aizen.outbox enable row level security;
alter table aizen.idempotency enable row level security;
revoke all on schema aizen from public;

-- migrate: rollback

drop schema aizen cascade;
