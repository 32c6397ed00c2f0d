-- The truth has a change of presence.
-- KEYS: device (hash)
-- ARGV: uid, moment of the change
if redis.call('HGET', KEYS[1], 'uid') ~= ARGV[1] then return 0 end
return redis.call('HSET', KEYS[1], 'written', ARGV[2])
