-- Appends an event to its customer's stream and publishes it with its id. Idempotent: an event that is older than,
-- or the same as, the last one of its subject is dropped, so that a repeat or a late relay never shows an old state.
-- KEYS: stream (stream), version of the subject (string)
-- ARGV: version, channel, rooms, event json, most events, stream ttl ms, version ttl ms
-- Returns: the event's id, or '' when it was dropped
local seen = tonumber(redis.call('GET', KEYS[2]) or '0')
local version = tonumber(ARGV[1])
if version > 0 then
  if seen >= version then return '' end
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[7])
end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*', 'r', ARGV[3], 'e', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PUBLISH', ARGV[2], id .. '\n' .. ARGV[3] .. '\n' .. ARGV[4])
return id
