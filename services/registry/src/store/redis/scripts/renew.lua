-- Arguments: the instance's id. Returns whether it has a lease.
local id = ARGV[4]
if not has_lease(id) then
  return 0
end
local length = tonumber(redis.call('HGET', key('lengths'), id))
redis.call('ZADD', key('leases'), whole(now + length), id)
return 1
