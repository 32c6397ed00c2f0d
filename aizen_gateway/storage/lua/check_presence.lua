-- Looks at a device: one that has gone becomes offline, one whose socket has gone may still be polling.
-- KEYS: device (hash)
-- ARGV: time-out ms
-- Returns: {next look ms or 0, uid, moment of a change that the truth has not got or 0, presence, way}
-- include: _session
-- include: _presence
local now = now_ms()
local d = redis.call('HMGET', KEYS[1], 'beat', 'uid', 'socket', 'presence')
if not d[2] then return {0, '', 0, '', ''} end
local ends = tonumber(d[1] or '0') + tonumber(ARGV[1])
local again = 0
if ends > now then
  again = ends
  -- No heartbeat before the next look needs a look of its own.
  redis.call('HSET', KEYS[1], 'watched', string.format('%.0f', ends + tonumber(ARGV[1])))
else
  redis.call('HDEL', KEYS[1], 'watched')
end
-- An open socket keeps it present; the end of the socket has it looked at again.
if not d[3] then
  if again > 0 then
    set_presence(KEYS[1], d[2], d[4] or 'online', 'polling', now)
  else
    set_presence(KEYS[1], d[2], 'offline', 'none', now)
  end
end
local shown = redis.call('HMGET', KEYS[1], 'presence', 'way')
return {again, d[2], unwritten(KEYS[1]), shown[1] or 'offline', shown[2] or 'none'}
