-- Ends the protection of a service for the length of its longest lease. Arguments: the service. Returns
-- whether there was one.
local service = ARGV[4]
if redis.call('SISMEMBER', key('protected'), service) == 0 then
  return 0
end
local longest = 0
local lengths = redis.call('HGETALL', key('lengths'))
for i = 1, #lengths, 2 do
  if string.match(lengths[i], '^[^/]+') == service then
    longest = math.max(longest, tonumber(lengths[i + 1]))
  end
end
redis.call('HSET', key('lifted'), service, whole(now + longest))
return 1
