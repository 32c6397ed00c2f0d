-- A device's socket opens: checks and slides the session, takes the device over from an older socket on whichever
-- instance, and tells all that the new one must know. Sockets are numbered, so that the older one is told from the
-- newer; by the clock, so that a number is never given twice, whatever Redis has forgotten.
-- KEYS: sessions (hash), device (hash), limit (string), pending (zset), leased (zset)
-- ARGV: token hash, ttl ms, max age ms, calls a minute, connection id, channel
-- Returns: {code, now, uid, customer, wait ms, number, when the session ends, moment of a change that the truth has not
--   got or 0, presence, how many commands wait or are leased, id, ms left of its lease, id, ms, ...}
-- include: _session
-- include: _presence
local now = now_ms()
local code, uid, customer, wait =
  enter(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), now)
if code ~= 0 then return {code, now, uid or '', customer or '', wait or 0, 0, 0, 0, '', 0} end
local before = redis.call('HMGET', KEYS[2], 'presence', 'uid', 'sockets', 'socket')
-- What the device said of itself holds until it says something else.
local shown = before[1] == 'error' and before[2] == uid and 'error' or 'online'
local number = string.format('%.0f', math.max(now, tonumber(before[3] or '0') + 1))
set_presence(KEYS[2], uid, shown, 'websocket', now)
redis.call('HSET', KEYS[2], 'customer', customer, 'said', shown, 'socket', ARGV[5], 'sockets', number)
-- The handshake was no poll.
redis.call('HDEL', KEYS[2], 'polled')
-- One that Redis has forgotten says again that it is open, and is told then.
if before[4] then redis.call('PUBLISH', ARGV[6], 'superseded ' .. number) end
local expires = string.match(redis.call('HGET', KEYS[1], ARGV[1]), '^%d+:(%d+):')
local leased = redis.call('ZCARD', KEYS[5])
local answer = {0, now, uid, customer, 0, tonumber(number), tonumber(expires), unwritten(KEYS[2]), shown,
  redis.call('ZCARD', KEYS[4]) + leased}
return leased > 0 and add_leases(answer, KEYS[5], now) or answer
