-- what is live is read in the order in which it is handed out
-- depends: 20261123_02_plans

-- migrate: apply

drop index aizen.commands_live;
create index commands_live on aizen.commands (priority, place) where status in ('queued', 'claimed', 'cancel_requested');

-- migrate: rollback

drop index aizen.commands_live;
create index commands_live on aizen.commands (id) where status in ('queued', 'claimed', 'cancel_requested');
