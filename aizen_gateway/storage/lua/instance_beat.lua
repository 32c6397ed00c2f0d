-- An instance says that it lives, and learns which ones have stopped saying so.
-- KEYS: instances (zset)
-- ARGV: instance id, silence ms after which one counts as dead
-- Returns: {1 when it was known to live (0 when it is new, was thought dead, or Redis was emptied), id, id, ...}
-- include: _session
local now = now_ms()
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, 10)
local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
-- Of one that was silent for long others may have ended some sockets already.
local known = before and tonumber(before) > now - tonumber(ARGV[2]) and 1 or 0
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], 2592000000)
local answer = {known}
for _, id in ipairs(dead) do
  if id ~= ARGV[1] then answer[#answer + 1] = id end
end
return answer
