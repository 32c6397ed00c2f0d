-- Shared by the scripts that change a device's presence. Not a script of its own.
-- Every change has a moment of its own, so that whoever writes changes to the truth can tell the later one.

-- Returns the moment of the change, or 0 when the presence was the same.
local function set_presence(device, uid, presence, now)
  local before = redis.call('HMGET', device, 'presence', 'uid', 'changed')
  local known = before[2] == uid and before[1] or 'offline'
  redis.call('HSET', device, 'uid', uid, 'presence', presence)
  if known == presence then return 0 end
  local moment = math.max(now, tonumber(before[3] or '0') + 1)
  redis.call('HSET', device, 'changed', string.format('%.0f', moment))
  return moment
end
