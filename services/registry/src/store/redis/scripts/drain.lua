-- Arguments: the instance's id. Returns a version that has the change, or nothing if there is no lease.
local id = ARGV[4]
if not has_lease(id) then
  return false
end
if redis.call('HSET', key('draining'), id, '1') == 1 then
  tell(id, '')
end
return version
