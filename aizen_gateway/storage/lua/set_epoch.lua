-- Marks the index as whole, unless Redis was emptied again while it was being filled.
-- KEYS: epoch (string), building (string)
-- ARGV: the token of this filling, ttl ms
-- Returns: 1 when marked, 0 when the filling must start again
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
return 1
