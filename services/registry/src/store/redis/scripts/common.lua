-- What all scripts begin with. Other keys are named here and not handed over: all have the tag of KEYS[1],
-- and with it the one slot.
local base, history, max_pause = ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function key(name)
  return base .. name
end

-- Lua would write large numbers with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- The first version is the time in microseconds, so that versions also grow when Redis was emptied.
local version = redis.call('GET', key('version'))
if not version then
  version = whole(time[1] * 1000000 + time[2])
  redis.call('SET', key('version'), version)
  redis.call('SET', key('epoch'), version)
end

-- A lease counts only time in which some registry ran, and Redis answered it.
local last = tonumber(redis.call('GET', key('clock')) or now)
redis.call('SET', key('clock'), whole(now))
if math.abs(now - last) > max_pause then
  local lengths = redis.call('HGETALL', key('lengths'))
  for i = 1, #lengths, 2 do
    redis.call('ZADD', key('leases'), whole(now + tonumber(lengths[i + 1])), lengths[i])
  end
end

-- What is known of an instance: as it registered, whether it drains, and what an operator decided.
local function record(id)
  local instance = redis.call('HGET', key('instances'), id)
  local drains = redis.call('HEXISTS', key('draining'), id)
  return instance, tostring(drains), redis.call('HGET', key('overrides'), id) or ''
end

-- Numbers a change of an instance and tells all registries.
local function tell(id, gone)
  local instance, drains, decided = record(id)
  version = whole(redis.call('INCR', key('version')))
  redis.call('XADD', key('changes'), 'MAXLEN', history, version .. '-0',
    'id', id, 'instance', instance, 'drains', drains, 'decided', decided, 'gone', gone)
end

-- Whether there is a lease that counts: one that has ended counts while its service is protected.
local function has_lease(id)
  local ends = tonumber(redis.call('ZSCORE', key('leases'), id))
  if not ends then
    return false
  end
  local service = string.match(id, '^[^/]+')
  return ends > now or redis.call('SISMEMBER', key('protected'), service) == 1
end

-- Removes an instance.
local function remove(id, gone, said)
  local instance, drains, decided = record(id)
  tell(id, gone)
  redis.call('XADD', key('departures'), 'MAXLEN', 256, '*',
    'id', id, 'instance', instance, 'drains', drains, 'decided', decided, 'gone', gone,
    'at', whole(now), 'said', said)
  redis.call('HDEL', key('instances'), id)
  redis.call('HDEL', key('lengths'), id)
  redis.call('HDEL', key('draining'), id)
  redis.call('ZREM', key('leases'), id)
  redis.call('HINCRBY', key('counts'), string.match(id, '^[^/]+'), -1)
end
