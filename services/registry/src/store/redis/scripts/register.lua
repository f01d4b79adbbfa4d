-- Arguments: the instance's id, itself, whether it drains, its address, its lease's length in milliseconds,
-- the limit of instances, and that of its service.
local id, instance, drains, address = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local length, limit, per_service = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local service = string.match(id, '^[^/]+')
local known, drained = record(id)
if known then
  local held_by = cjson.decode(known).address
  local ends = tonumber(redis.call('ZSCORE', key('leases'), id))
  if ends > now and held_by ~= address then
    return {'held', held_by}
  end
elseif redis.call('HLEN', key('instances')) >= limit then
  return {'full'}
elseif tonumber(redis.call('HGET', key('counts'), service) or 0) >= per_service then
  return {'service_full'}
else
  redis.call('HINCRBY', key('counts'), service, 1)
end
redis.call('ZADD', key('leases'), whole(now + length), id)
redis.call('HSET', key('lengths'), id, whole(length))
if known ~= instance or drained ~= drains then
  redis.call('HSET', key('instances'), id, instance)
  if drains == '1' then
    redis.call('HSET', key('draining'), id, '1')
  else
    redis.call('HDEL', key('draining'), id)
  end
  tell(id, '')
end
return {'ok', version}
