-- An instance that was thought dead, or a Redis that was emptied: a socket that is still open says so again.
-- KEYS: sessions (hash), device (hash)
-- ARGV: token hash, connection id, instance id, number, uid, customer
-- Returns: {0 when superseded, 1 when it stands, 2 when its session is gone; moment of a change to online or 0}
-- include: _session
-- include: _presence
local now = now_ms()
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record or tonumber(string.match(record, '^%d+:(%d+):') or '0') <= now then return {2, 0} end
local d = redis.call('HMGET', KEYS[2], 'number', 'presence', 'socket')
if d[1] and tonumber(d[1]) > tonumber(ARGV[4]) then return {0, 0} end
if d[3] ~= ARGV[2] then
  redis.call('HSET', KEYS[2], 'customer', ARGV[6], 'socket', ARGV[2], 'instance', ARGV[3],
    'number', ARGV[4])
  if tonumber(redis.call('HGET', KEYS[2], 'sockets') or '0') < tonumber(ARGV[4]) then
    redis.call('HSET', KEYS[2], 'sockets', ARGV[4])
  end
end
redis.call('PEXPIRE', KEYS[2], 604800000)
if d[2] and d[2] ~= 'offline' then return {1, 0} end
return {1, set_presence(KEYS[2], ARGV[5], 'online', now)}
