-- Leaves nothing of an ended command, and tells what could be claimed next.
-- KEYS: pending (zset), leased (zset), records (hash)
-- ARGV: id, channel
-- Returns: the id of the next claimable command, or ''
-- include: _session
-- include: _queue
forget(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[2], 'ended ' .. ARGV[1])
local now = now_ms()
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local r = unpack_record(redis.call('HGET', KEYS[3], id))
  if r and r.claim_by > now then return id end
end
return ''
