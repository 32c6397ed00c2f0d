-- A device that sends heartbeats has an appointment to be looked at: until then it needs no other one.
-- KEYS: device (hash)
-- ARGV: the moment before which no heartbeat needs one
-- Returns: 1 when the device is known
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'watched', ARGV[1])
return 1
