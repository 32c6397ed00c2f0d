-- A device's socket has ended; the late end of an older socket changes nothing of a newer one.
-- KEYS: device (hash)
-- ARGV: connection id
-- Returns: now
-- include: _session
local now = now_ms()
if redis.call('HGET', KEYS[1], 'socket') == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'socket')
  redis.call('HSET', KEYS[1], 'seen', string.format('%.0f', now))
end
return now
