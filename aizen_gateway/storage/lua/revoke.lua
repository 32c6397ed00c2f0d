-- Ends all sessions of a device at once and tells every instance; a sign-in under way with older credentials fails.
-- KEYS: sessions (hash), epoch (string), device (hash)
-- ARGV: credential epoch, channel, message, 1 when the device counts as offline from now on
-- Returns: how many sessions there were
local had = redis.call('HLEN', KEYS[1])
redis.call('DEL', KEYS[1])
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[1]))
redis.call('SET', KEYS[2], string.format('%.0f', epoch), 'PX', 3600000)
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[3], 'presence', 'offline')
  redis.call('HDEL', KEYS[3], 'beat', 'watched')
end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return had
