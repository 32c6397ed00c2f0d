-- Puts a command that the truth holds for queued at its place, and wakes whoever waits. Idempotent by id.
-- A lease that is known here alone is taken back: a claim counts only once the truth has it.
-- KEYS: pending (zset), leased (zset), records (hash)
-- ARGV: id, record, score, channel
-- Returns: 1 when it was added, 0 when it was there already
-- include: _queue
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local added = redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
keep(KEYS[1], KEYS[2], KEYS[3])
redis.call('PUBLISH', ARGV[4], 'wake ' .. ARGV[1])
return added
