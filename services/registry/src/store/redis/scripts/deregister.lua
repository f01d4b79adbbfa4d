-- Arguments: the instance's id, and what it said. Returns the version of the change, or nothing if there is
-- no lease.
local id, said = ARGV[4], ARGV[5]
if not has_lease(id) then
  return false
end
remove(id, 'left', said)
redis.call('HDEL', key('overrides'), id)
return version
