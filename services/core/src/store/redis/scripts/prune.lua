-- Removes entries that have expired, from the oldest to the first that has not; says how many.
local now, batch = tonumber(ARGV[3]), ARGV[4]

local expired
for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', batch)) do
  local until_us
  for n = 1, #entry[2] - 1, 2 do
    if entry[2][n] == 'until' then
      until_us = tonumber(entry[2][n + 1])
    end
  end
  if until_us and until_us > now then
    break
  end
  expired = entry[1]
end
if not expired then
  return 0
end
local ms, number = string.match(expired, '^(%d+)-(%d+)$')
local before = redis.call('XLEN', stream)
redis.call('XTRIM', stream, 'MINID', '=', ms .. '-' .. string.format('%.0f', tonumber(number) + 1))
return before - redis.call('XLEN', stream)
