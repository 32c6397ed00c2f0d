-- Stores a new device session, unless all sessions were ended after its credentials were checked.
-- KEYS: sessions (hash), epoch (string)
-- ARGV: token hash, ttl ms, max age ms, uid, customer, credential epoch, most sessions a device
-- Returns: {1 or 0, now}
-- include: _session
local now = now_ms()
if tonumber(redis.call('GET', KEYS[2]) or '0') > tonumber(ARGV[6]) then return {0, now} end
local all = redis.call('HGETALL', KEYS[1])
local oldest, oldest_end, count = nil, nil, 0
for i = 1, #all, 2 do
  local expires = tonumber(string.match(all[i + 1], '^%d+:(%d+):') or '0')
  if expires <= now then
    redis.call('HDEL', KEYS[1], all[i])
  else
    count = count + 1
    if not oldest_end or expires < oldest_end then oldest, oldest_end = all[i], expires end
  end
end
if count >= tonumber(ARGV[7]) then redis.call('HDEL', KEYS[1], oldest) end
local lives = math.min(tonumber(ARGV[2]), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f:%.0f:%s:%s', now, now + lives, ARGV[4], ARGV[5]))
if redis.call('PTTL', KEYS[1]) < lives then redis.call('PEXPIRE', KEYS[1], lives) end
return {1, now}
