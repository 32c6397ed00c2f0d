-- Undoes leases that were not written to the truth: no delivery is counted, the place is kept.
-- KEYS: pending (zset), leased (zset), records (hash)
-- ARGV: channel, id, id, ...
-- Returns: how many went back
-- include: _queue
local back = 0
for i = 2, #ARGV do
  local id = ARGV[i]
  local r = unpack_record(redis.call('HGET', KEYS[3], id))
  if r and redis.call('ZREM', KEYS[2], id) == 1 then
    redis.call('ZADD', KEYS[1], r.score, id)
    back = back + 1
  end
end
if back > 0 then
  keep(KEYS[1], KEYS[2], KEYS[3])
  redis.call('PUBLISH', ARGV[1], 'wake')
end
return back
