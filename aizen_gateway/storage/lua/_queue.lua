-- Shared by the scripts of the queue. Not a script of its own.
-- A queue record is `score:claim_by:remaining:timeout_ms:deadline`: its place, the moment from which it is not
-- handed out, the deliveries left, the execution bound, and the end of the execution now under way (0 for none, and
-- for a lease that the truth has not confirmed).

local QUEUE_TTL = 691200000 -- 8 days: longer than any command may wait
local UNCONFIRMED = 5000 -- far longer than a confirmation takes; one that comes later is refused or mended

local function unpack_record(text)
  if not text then return nil end
  local score, claim_by, remaining, timeout, deadline =
    string.match(text, '^(%d+):(%d+):(%-?%d+):(%d+):(%d+)$')
  if not score then return nil end
  return {
    score = score, claim_by = tonumber(claim_by), remaining = tonumber(remaining),
    timeout = tonumber(timeout), deadline = tonumber(deadline),
  }
end

local function pack_record(r)
  return string.format('%s:%.0f:%.0f:%.0f:%.0f', r.score, r.claim_by, r.remaining, r.timeout, r.deadline)
end

local function forget(pending, leased, records, id)
  redis.call('ZREM', pending, id)
  redis.call('ZREM', leased, id)
  redis.call('HDEL', records, id)
end

local function keep(pending, leased, records)
  redis.call('PEXPIRE', pending, QUEUE_TTL)
  redis.call('PEXPIRE', leased, QUEUE_TTL)
  redis.call('PEXPIRE', records, QUEUE_TTL)
end

-- Leases that have run out go back to their place; what may not be delivered again is left to the sweep of the truth.
local function return_lapsed(pending, leased, records, now)
  local lapsed = redis.call('ZRANGEBYSCORE', leased, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 100)
  for i = 1, #lapsed, 2 do
    local id, lease_end = lapsed[i], tonumber(lapsed[i + 1])
    local r = unpack_record(redis.call('HGET', records, id))
    redis.call('ZREM', leased, id)
    local in_time = r and (r.deadline == 0 or r.deadline >= lease_end)
    if in_time and r.remaining > 0 and r.claim_by > now then
      redis.call('ZADD', pending, r.score, id)
    else
      redis.call('HDEL', records, id)
    end
  end
  if #lapsed > 0 then keep(pending, leased, records) end
end
