-- what a small or stale database needs for plans that stay good while it grows
-- depends: 20261123_01_initial

-- migrate: apply

-- By a condition that no statement about one device's open session has: such a statement took it for its own index.
drop index aizen.sessions_due;
create index sessions_due on aizen.sessions (expires_at) where closed_at is null;

-- A command dies twice before it has ended, and then stays: by the default, a fifth of the whole history would have to
-- be dead before the indexes of what is open were cleaned.
alter table aizen.commands set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0.02);

-- migrate: rollback

alter table aizen.commands reset (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor);
drop index aizen.sessions_due;
create index sessions_due on aizen.sessions (expires_at) where status in ('pending_approval', 'active');
