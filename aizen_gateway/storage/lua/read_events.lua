-- Reads events of a customer's stream with the tail as it is at the same moment.
-- KEYS: stream (stream), tail (string)
-- ARGV: id of the event before, most events, octets after which no further event is taken
-- Returns: {tail or '', id, predecessor, rooms, event json, id, ...}
local most, most_octets = tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {redis.call('GET', KEYS[2]) or ''}
local from, taken, octets = '(' .. ARGV[1], 0, 0
while taken < most and octets < most_octets do
  -- In small steps, for events may be large.
  local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 16)
  for _, entry in ipairs(page) do
    if taken >= most or octets >= most_octets then break end
    local fields = entry[2]
    for _, text in ipairs({entry[1], fields[2], fields[4], fields[6]}) do answer[#answer + 1] = text end
    taken = taken + 1
    octets = octets + #fields[6]
    from = '(' .. entry[1]
  end
  if #page < 16 then break end
end
return answer
