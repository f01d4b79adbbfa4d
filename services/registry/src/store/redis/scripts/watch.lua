-- Watchers that acknowledge. Arguments: what to do, how long a watcher is believed to be there without a word
-- of its registry (milliseconds), then what that needs. A watcher is a string of its session, the version that
-- it acknowledged, and the version at which a wait for it timed out.
local act, believed = ARGV[4], tonumber(ARGV[5])
local function read(name)
  local text = redis.call('HGET', key('watchers'), name)
  if text then
    local session, acknowledged, timed_out = string.match(text, '^(%S+) (%d+) (%d+)$')
    return session, tonumber(acknowledged), tonumber(timed_out)
  end
end
local function write(name, session, acknowledged, timed_out)
  redis.call('HSET', key('watchers'), name,
    session .. ' ' .. whole(acknowledged) .. ' ' .. whole(timed_out))
end
local function drop(name)
  redis.call('HDEL', key('watchers'), name)
  redis.call('ZREM', key('seen'), name)
end

if act == 'join' then
  write(ARGV[6], ARGV[7], 0, 0)
  redis.call('ZADD', key('seen'), whole(now + believed), ARGV[6])
  return {}
elseif act == 'leave' then
  -- It may be watching at another registry by now.
  if read(ARGV[6]) == ARGV[7] then
    drop(ARGV[6])
  end
  return {}
elseif act == 'keep' then
  for i = 6, #ARGV, 2 do
    local session, acknowledged = read(ARGV[i])
    if not session then
      write(ARGV[i], ARGV[i + 1], 0, 0)
      session = ARGV[i + 1]
    end
    if session == ARGV[i + 1] then
      redis.call('ZADD', key('seen'), whole(now + believed), ARGV[i])
    end
  end
  return {}
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', key('seen'), '-inf', whole(now))) do
  drop(name)
end
if act == 'acknowledge' then
  local name, wanted = ARGV[6], tonumber(ARGV[7])
  local session, acknowledged, timed_out = read(name)
  if not session then
    return {}
  end
  acknowledged = math.max(acknowledged, wanted)
  if timed_out <= acknowledged then
    timed_out = 0
  end
  write(name, session, acknowledged, timed_out)
  return {name}
end

-- Who has acknowledged a version ('done'), and who has not and is waited for ('open'); or skips these ('skip').
local wanted, found = tonumber(ARGV[6]), {}
for _, name in ipairs(redis.call('HKEYS', key('watchers'))) do
  local session, acknowledged, timed_out = read(name)
  if act == 'done' and acknowledged >= wanted then
    found[#found + 1] = name
  elseif act == 'open' and acknowledged < wanted and timed_out == 0 then
    found[#found + 1] = name
  elseif act == 'skip' and acknowledged < wanted then
    write(name, session, acknowledged, math.max(timed_out, wanted))
    found[#found + 1] = name
  end
end
return found
