-- Checks and slides the session, keeps the heartbeat, and tells whether the presence changed.
-- KEYS: sessions (hash), device (hash), limit (string), pending (zset), leased (zset), records (hash)
-- ARGV: token hash, ttl ms, max age ms, calls a minute, presence, heartbeat json, time-out ms, 1 when over a socket
-- Returns: {code, now, uid, customer, wait ms, pending, moment of a change or 0, 1 when the watch must be set, way}
-- A heartbeat over a socket keeps nobody online after the socket has gone: only `beat`, that of REST, does.
-- include: _session
-- include: _queue
-- include: _presence
local now = now_ms()
local code, uid, customer, wait =
  enter(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), now)
if code ~= 0 then return {code, now, uid or '', customer or '', wait or 0, 0, 0, 0, ''} end
local on_socket = ARGV[8] == '1' or redis.call('HEXISTS', KEYS[2], 'socket') == 1
local way = on_socket and 'websocket' or 'polling'
local changed = set_presence(KEYS[2], uid, ARGV[5], way, now)
local at = string.format('%.0f', now)
redis.call('HSET', KEYS[2], 'customer', customer, 'said', ARGV[5], 'heard', at, 'heartbeat', ARGV[6])
return_lapsed(KEYS[4], KEYS[5], KEYS[6], now)
local watch = 0
if ARGV[8] ~= '1' then
  redis.call('HSET', KEYS[2], 'beat', at)
  if tonumber(redis.call('HGET', KEYS[2], 'watched') or '0') < now + tonumber(ARGV[7]) then watch = 1 end
end
return {0, now, uid, customer, 0, redis.call('ZCARD', KEYS[4]), changed, watch, way}
