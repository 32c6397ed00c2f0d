-- Decides whether a device that was to be looked at has gone; exactly one caller is told of the change.
-- KEYS: device (hash)
-- ARGV: time-out ms
-- Returns: {next look ms or 0, uid, moment at which it went offline by this look or 0}
-- include: _session
-- include: _presence
local now = now_ms()
local d = redis.call('HMGET', KEYS[1], 'beat', 'uid', 'socket')
if not d[2] then return {0, '', 0} end
local ends = tonumber(d[1] or '0') + tonumber(ARGV[1])
if ends > now then
  redis.call('HSET', KEYS[1], 'watched', string.format('%.0f', ends + tonumber(ARGV[1])))
  return {ends, d[2], 0}
end
redis.call('HDEL', KEYS[1], 'watched')
-- An open socket keeps it present; the end of the socket has it looked at again.
if d[3] then return {0, d[2], 0} end
return {0, d[2], set_presence(KEYS[1], d[2], 'offline', now)}
