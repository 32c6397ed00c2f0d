-- Checks and slides a device session.
-- KEYS: sessions (hash), device (hash), limit (string)
-- ARGV: token hash, ttl ms, max age ms, calls a minute
-- Returns: {code, now, uid, customer, wait ms}
-- include: _session
local now = now_ms()
local code, uid, customer, wait =
  enter(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), now)
return {code, now, uid or '', customer or '', wait or 0}
