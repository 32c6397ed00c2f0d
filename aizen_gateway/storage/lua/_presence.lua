-- Shared by the scripts that change a device's presence. Not a script of its own.
-- Every change has a moment of its own, so that whoever writes changes to the truth can tell the later one; `written`
-- is the moment of the change that the truth has.

-- `way` is how the device is in touch. Returns the moment of the change, or 0 when both were the same.
local function set_presence(device, uid, presence, way, now)
  local before = redis.call('HMGET', device, 'presence', 'uid', 'changed', 'way')
  local mine = before[2] == uid
  redis.call('HSET', device, 'uid', uid, 'presence', presence, 'way', way)
  if (mine and before[1] or 'offline') == presence and (mine and before[4] or 'none') == way then return 0 end
  local moment = math.max(now, tonumber(before[3] or '0') + 1)
  redis.call('HSET', device, 'changed', string.format('%.0f', moment))
  return moment
end

-- Adds the leases that have not run out to `answer`: id, milliseconds left, id, ...
local function add_leases(answer, leased, now)
  local leases = redis.call('ZRANGEBYSCORE', leased, '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES')
  for i = 1, #leases, 2 do
    answer[#answer + 1] = leases[i]
    answer[#answer + 1] = tonumber(leases[i + 1]) - now
  end
  return answer
end

-- Returns the moment of the last change when the truth has not got it, else 0.
local function unwritten(device)
  local d = redis.call('HMGET', device, 'changed', 'written')
  local changed = tonumber(d[1] or '0')
  return tonumber(d[2] or '0') < changed and changed or 0
end
