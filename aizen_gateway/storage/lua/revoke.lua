-- Ends all sessions of a device at once and tells every instance; a sign-in under way with older credentials fails.
-- KEYS: sessions (hash), epoch (string), device (hash)
-- ARGV: credential epoch, channel, message, 1 when the device counts as offline from now on
-- The message ends with the moment: a socket that opened later, with newer credentials, is not meant.
-- Returns: how many sessions there were
-- include: _session
-- Told again, by the relay say: the sessions that were meant are gone, and those that are there are newer.
if tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[1]) then return 0 end
local now = now_ms()
local had = redis.call('HLEN', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[1], 'PX', 3600000)
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[3], 'presence', 'offline', 'way', 'none')
  redis.call('HDEL', KEYS[3], 'beat', 'watched', 'polled')
end
redis.call('PUBLISH', ARGV[2], ARGV[3] .. string.format(' %.0f', now))
return had
