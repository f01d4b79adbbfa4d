-- Changes what an operator decided about an instance. Arguments: its id, the decision that is known, the new
-- one, and the limit of decisions: at it, those about instances that have not come back are forgotten. Returns what
-- happened, and a version or the decision that is in force.
local id, known, wanted, limit = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
if not has_lease(id) then
  return {'unknown', ''}
end
local current = redis.call('HGET', key('overrides'), id) or ''
if current ~= known then
  return {'other', current}
end
if wanted == current then
  return {'ok', version}
end
if wanted == '' then
  redis.call('HDEL', key('overrides'), id)
else
  if current == '' and redis.call('HLEN', key('overrides')) >= limit then
    for _, other in ipairs(redis.call('HKEYS', key('overrides'))) do
      if redis.call('HEXISTS', key('instances'), other) == 0 then
        redis.call('HDEL', key('overrides'), other)
      end
    end
  end
  redis.call('HSET', key('overrides'), id, wanted)
end
tell(id, '')
return {'ok', version}
