-- Ends one device session, and the sockets that were opened with it.
-- KEYS: sessions (hash)
-- ARGV: token hash, channel
redis.call('PUBLISH', ARGV[2], 'logout ' .. ARGV[1])
return redis.call('HDEL', KEYS[1], ARGV[1])
