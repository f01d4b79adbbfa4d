-- Everything that a registry has to know to follow the changes. Returns the epoch, the version, the protected
-- services, the instances, and the latest changes.
local rows = {}
for _, id in ipairs(redis.call('HKEYS', key('instances'))) do
  local instance, drains, decided = record(id)
  rows[#rows + 1] = {id, instance, drains, decided}
end
return {
  redis.call('GET', key('epoch')), version, redis.call('SMEMBERS', key('protected')), rows,
  redis.call('XRANGE', key('changes'), '-', '+')
}
