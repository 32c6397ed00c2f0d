-- A device's socket opens: checks and slides the session, takes the device over from an older socket on whichever
-- instance, and tells whether its presence changed. Sockets are numbered, so that the older one is told from the newer.
-- KEYS: sessions (hash), device (hash), limit (string)
-- ARGV: token hash, ttl ms, max age ms, calls a minute, connection id, instance id, channel
-- Returns: {code, now, uid, customer, wait ms, number, moment of a change or 0, when the session ends, presence}
-- include: _session
-- include: _presence
local now = now_ms()
local code, uid, customer, wait =
  enter(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), now)
if code ~= 0 then return {code, now, uid or '', customer or '', wait or 0, 0, 0, 0, ''} end
local before = redis.call('HMGET', KEYS[2], 'presence', 'uid', 'socket')
-- What the device says of itself stays while its sockets follow one another.
local shown = 'online'
if before[1] == 'error' and before[2] == uid and before[3] then shown = 'error' end
local number = redis.call('HINCRBY', KEYS[2], 'sockets', 1)
local changed = set_presence(KEYS[2], uid, shown, now)
redis.call('HSET', KEYS[2], 'customer', customer, 'socket', ARGV[5], 'instance', ARGV[6], 'number', number)
redis.call('PUBLISH', ARGV[7], 'superseded ' .. number)
local expires = string.match(redis.call('HGET', KEYS[1], ARGV[1]), '^%d+:(%d+):')
return {0, now, uid, customer, 0, number, changed, tonumber(expires), shown}
