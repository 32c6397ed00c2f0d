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
    r.remaining = r.remaining + 1
    r.deadline = 0
    redis.call('HSET', KEYS[3], id, pack_record(r))
    redis.call('ZADD', KEYS[1], r.score, id)
    back = back + 1
  end
end
if back > 0 then redis.call('PUBLISH', ARGV[1], 'wake') end
return back
