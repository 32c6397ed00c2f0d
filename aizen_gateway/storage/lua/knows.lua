-- Whether a command is in the index as it must be. What is queued has its place, or a lease that the truth has not
-- confirmed yet: a longer one is left of a claim that the truth has undone since.
-- KEYS: pending (zset), leased (zset), records (hash)
-- ARGV: id, 1 when the truth holds it for queued
-- include: _session
-- include: _queue
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 then return 0 end
if ARGV[2] ~= '1' or redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
local lease_end = redis.call('ZSCORE', KEYS[2], ARGV[1])
return lease_end and tonumber(lease_end) <= now_ms() + UNCONFIRMED and 1 or 0
