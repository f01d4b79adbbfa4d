-- Charges failures to counts, all or none (generic cell rate algorithm). A count's key holds the time, in
-- microseconds by this server's clock, up to which its failures are paid for. Returns the wait in
-- microseconds, -1 when the charges were made.
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]

local due = {}
for at, count in ipairs(KEYS) do
  local burst, refill = tonumber(ARGV[2 * at - 1]), tonumber(ARGV[2 * at])
  local paid = math.max(now, tonumber(redis.call('GET', count) or '0'))
  local wait = paid + refill - now - burst * refill
  if wait > 0 then
    return wait
  end
  due[at] = paid + refill
end
for at, count in ipairs(KEYS) do
  local ms = math.max(1, math.ceil((due[at] - now) / 1000))
  redis.call('SET', count, string.format('%.0f', due[at]), 'PX', string.format('%.0f', ms))
end
return -1
