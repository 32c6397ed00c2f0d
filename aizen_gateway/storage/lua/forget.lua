-- Leaves nothing of one life of a device. Told late, it must not touch what a newer life of the same id has.
-- KEYS: sessions (hash), epoch (string), device (hash), limit (string), pending (zset), leased (zset), records (hash)
-- ARGV: uid of the life, its last credential epoch
-- Returns: 1 when there is a newer life, else 0
-- A newer life's credentials are younger; its device may still go by the old uid here, while it does nothing but poll.
local newer = tonumber(redis.call('GET', KEYS[2]) or '0') > tonumber(ARGV[2])
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.match(all[i + 1], '^%d+:%d+:([^:]*):') == ARGV[1] then
    redis.call('HDEL', KEYS[1], all[i])
  else
    newer = true
  end
end
local uid = redis.call('HGET', KEYS[3], 'uid')
if uid and uid ~= ARGV[1] then newer = true end
if not newer or uid == ARGV[1] then redis.call('DEL', KEYS[3]) end
if newer then return 1 end
redis.call('DEL', KEYS[1], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
return 0
