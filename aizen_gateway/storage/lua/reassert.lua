-- A socket says that it is open, for Redis may have forgotten it, and learns what it may have missed.
-- KEYS: sessions (hash), device (hash), leased (zset)
-- ARGV: token hash, connection id, number, uid, customer
-- Returns: {0 when superseded, 1 when it stands, 2 when its session is gone; moment of a change that the truth has not
--   got or 0; presence; id, ms left of its lease, id, ms, ...}
-- include: _session
-- include: _presence
local now = now_ms()
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record or tonumber(string.match(record, '^%d+:(%d+):') or '0') <= now then return {2, 0, ''} end
local d = redis.call('HMGET', KEYS[2], 'sockets', 'socket', 'said')
if d[1] and tonumber(d[1]) > tonumber(ARGV[3]) then return {0, 0, ''} end
if d[2] ~= ARGV[2] then
  redis.call('HSET', KEYS[2], 'customer', ARGV[5], 'socket', ARGV[2], 'sockets', ARGV[3])
  set_presence(KEYS[2], ARGV[4], d[3] or 'online', 'websocket', now)
end
redis.call('PEXPIRE', KEYS[2], 604800000)
local answer = {1, unwritten(KEYS[2]), redis.call('HGET', KEYS[2], 'presence') or 'online'}
return add_leases(answer, KEYS[3], now)
