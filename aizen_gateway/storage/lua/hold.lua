-- Makes the lease of a claimed command here what the truth says it is.
-- KEYS: pending (zset), leased (zset), records (hash)
-- ARGV: id, record, lease end ms
-- include: _queue
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
keep(KEYS[1], KEYS[2], KEYS[3])
return 1
