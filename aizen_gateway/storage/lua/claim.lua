-- Checks and slides the session, returns lapsed leases, and leases the most urgent commands: one round trip.
-- These leases are short and count no delivery until the truth has confirmed them (`hold`): the caller may be gone.
-- KEYS: sessions (hash), device (hash), limit (string), pending (zset), leased (zset), records (hash)
-- ARGV: token hash, ttl ms, max age ms, calls a minute, how many, visibility ms
-- Returns: {code, now, uid, customer, wait ms, next lease end or 0, id, id, ...}
-- include: _session
-- include: _queue
local now = now_ms()
local code, uid, customer, wait =
  enter(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), now)
if code ~= 0 then return {code, now, uid or '', customer or '', wait or 0, 0} end

local pending, leased, records = KEYS[4], KEYS[5], KEYS[6]
local wanted, visibility = tonumber(ARGV[5]), tonumber(ARGV[6])
return_lapsed(pending, leased, records, now)

local answer = {0, now, uid, customer, 0, 0}
local taken = 0
while taken < wanted do
  local head = redis.call('ZRANGE', pending, 0, wanted - taken - 1)
  if #head == 0 then break end
  for _, id in ipairs(head) do
    local r = unpack_record(redis.call('HGET', records, id))
    if not r or r.claim_by <= now or r.remaining <= 0 then
      forget(pending, leased, records, id)
    else
      r.deadline = 0
      redis.call('ZREM', pending, id)
      redis.call('ZADD', leased, now + math.min(visibility, UNCONFIRMED), id)
      redis.call('HSET', records, id, pack_record(r))
      taken = taken + 1
      answer[#answer + 1] = id
    end
  end
end
if taken > 0 then keep(pending, leased, records) end
local first = redis.call('ZRANGE', leased, 0, 0, 'WITHSCORES')
if first[2] then answer[6] = tonumber(first[2]) end
return answer
