-- Counts a call against a limit (generic cell rate algorithm). The key holds the time, in microseconds by this
-- server's clock, up to which its calls are paid for. Returns whether the call is allowed (1 or 0), the calls that
-- are left now, the wait in microseconds until the next one is allowed, and the microseconds until all are.
local burst, interval = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]

local paid = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
local wait = paid + interval - now - burst * interval
if wait > 0 then
  return {0, 0, wait, paid - now}
end
paid = paid + interval
local ms = math.max(1, math.ceil((paid - now) / 1000))
redis.call('SET', KEYS[1], string.format('%.0f', paid), 'PX', string.format('%.0f', ms))
return {1, math.floor((burst * interval - (paid - now)) / interval), 0, paid - now}
