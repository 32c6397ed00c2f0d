-- Shared head of the scripts that a device calls: time, session check, sliding, rate limit.
-- Included by `-- include: _session` lines; not a script of its own.

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Generic cell rate: `rate` a minute with a burst of as many; 0 means no limit.
-- Returns 0 when admitted, else the milliseconds after which one more would be.
local function over_limit(key, rate, now)
  if rate <= 0 then return 0 end
  local step = 60000 / rate
  local tat = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local wait = tat + step - 60000 - now
  if wait > 0 then return math.max(1, math.ceil(wait)) end
  redis.call('SET', key, string.format('%.3f', tat + step), 'PX', 61000)
  return 0
end

-- A session is `created:expires:uid:customer` under the hash of its token. Without a ttl it does not slide, and the
-- device was not in touch: the gateway looks on its behalf. A rate of -1 is no call of its own, such as a message.
-- Returns code, uid, customer, wait: code 0 good, 1 no such session, 2 over the limit.
local function enter(sessions, device, limit, hash, ttl, max_age, rate, now)
  local record = redis.call('HGET', sessions, hash)
  if not record then return 1 end
  local created, expires, uid, customer = string.match(record, '^(%d+):(%d+):([^:]*):([^:]*)$')
  if not created or tonumber(expires) <= now then
    redis.call('HDEL', sessions, hash)
    return 1
  end
  local wait = over_limit(limit, rate, now)
  if wait > 0 then return 2, uid, customer, wait end
  if ttl > 0 then
    local slid = math.min(now + ttl, tonumber(created) + max_age)
    redis.call('HSET', sessions, hash, string.format('%s:%.0f:%s:%s', created, slid, uid, customer))
    if redis.call('PTTL', sessions) < ttl then redis.call('PEXPIRE', sessions, ttl) end
    redis.call('HSET', device, 'seen', string.format('%.0f', now))
    if rate >= 0 then redis.call('HSET', device, 'polled', string.format('%.0f', now)) end
  end
  -- Whose news this is: a device may poll for long before it tells anything else.
  redis.call('HSETNX', device, 'uid', uid)
  redis.call('PEXPIRE', device, 604800000)
  return 0, uid, customer, 0
end
