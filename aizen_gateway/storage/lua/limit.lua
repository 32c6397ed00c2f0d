-- Counts one call against a limit a minute.
-- KEYS: limit (string)
-- ARGV: calls a minute, 1 to count it (0 only looks)
-- Returns: {wait ms (0 when admitted), now}
-- include: _session
local now = now_ms()
local rate = tonumber(ARGV[1])
if ARGV[2] == '1' or rate <= 0 then return {over_limit(KEYS[1], rate, now), now} end
local step = 60000 / rate
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
return {math.max(0, math.ceil(tat + step - 60000 - now)), now}
