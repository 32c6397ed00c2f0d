-- Appends an event to its customer's stream and publishes it with its id and that of its predecessor, by which
-- whoever hears it knows whether it missed any. Ids rise as long as the tail is known, which outlives the stream.
-- Idempotent: an event that is older than, or the same as, the last one of its subject is dropped, so that a repeat
-- or a late relay never shows an old state. Versions rise over all subjects, so that the lowest ones are those of the
-- subjects that were silent the longest.
-- Events go once they are old and enough newer ones are there, or are too many.
-- KEYS: stream (stream), tail (string), versions of the subjects told last (zset)
-- ARGV: version, channel, rooms, event json, subject, most subjects, stream ttl ms, tail ttl ms,
--   how many events are kept however old, how many are kept however new, ms after which they are old
-- Returns: the event's id, or '' when it was dropped
local stream, tail, versions = KEYS[1], KEYS[2], KEYS[3]
local seen = tonumber(redis.call('ZSCORE', versions, ARGV[5]) or '0')
local version = tonumber(ARGV[1])
if version > 0 then
  if seen >= version then return '' end
  redis.call('ZADD', versions, version, ARGV[5])
  redis.call('ZREMRANGEBYRANK', versions, 0, -1 - tonumber(ARGV[6]))
  redis.call('PEXPIRE', versions, ARGV[7])
end

local last = redis.call('GET', tail) or '0-0'
local last_ms, last_number = string.match(last, '^(%d+)-(%d+)$')
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local id
if now_ms > tonumber(last_ms) then
  id = string.format('%.0f-0', now_ms)
else
  id = string.format('%s-%.0f', last_ms, tonumber(last_number) + 1)
end
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[10], id, 'p', last, 'r', ARGV[3], 'e', ARGV[4])
if redis.call('XLEN', stream) > tonumber(ARGV[9]) + 100 then
  -- At most as many as there are too many.
  redis.call('XTRIM', stream, 'MINID', '~', string.format('%.0f-0', now_ms - tonumber(ARGV[11])), 'LIMIT', 100)
end
redis.call('PEXPIRE', stream, ARGV[7])
redis.call('SET', tail, id, 'PX', ARGV[8])
redis.call('PUBLISH', ARGV[2], id .. '\n' .. last .. '\n' .. ARGV[3] .. '\n' .. ARGV[4])
return id
