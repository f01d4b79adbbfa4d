-- Judges the presented token and acts. The verdicts are those of `SessionPolicy::judge`.
local presented, successor, salt = ARGV[3], ARGV[4], ARGV[5]
local now, absolute, idle = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local grace, remembered, until_us = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]

local session = redis.call('GET', key('token', presented))
if not session then
  return {'unknown'}
end
local session_key, salt_key = key('session', session), key('salt', session)
local kept = redis.call('HMGET', session_key, 'member', 'started', 'renewed', 'epoch', 'current',
  'previous', 'used', 'grace_until')
local member, started, renewed, epoch, current, previous, used, grace_until = unpack(kept)
if not member then
  return {'unknown'}
end

-- The session stays until Redis lets it expire: our clock may be wrong at this moment.
if now >= over_at(started, renewed, absolute, idle) then
  return {'expired'}
end
-- Cannot be, for what raises the epoch ends what is below it; but a session must not outlive it.
if tonumber(epoch_of(member)) > tonumber(epoch) then
  finish(session, member, until_us)
  return {'unknown'}
end

if presented ~= current then
  -- This very call, sent again because its answer was lost: nobody else can know the salt.
  if current == successor then
    return {'rotated', member, session, started}
  end
  local kept_salt = redis.call('GET', salt_key)
  -- The first token used is the one that made the current one current, just then.
  if presented == previous and kept_salt and now < tonumber(grace_until)
      and now - tonumber(used or renewed) < grace then
    return {'repeated', member, session, started, renewed, kept_salt}
  end
  finish(session, member, until_us)
  return {'reused', session}
end

redis.call('HSET', session_key, 'renewed', ARGV[6], 'current', successor, 'previous', presented,
  'used', ARGV[6], 'grace_until', string.format('%.0f', now + grace))
revoke_at_least_until(session, until_us)
keep_for(session_key, ms_between(now, over_at(started, now, absolute, idle)))
-- A second more than it is of use, so that clocks need not agree to the millisecond.
redis.call('SET', salt_key, salt, 'PX', ms_between(now, now + grace + 1000000))
local absolute_ms = ms_between(now, tonumber(started) + absolute)
redis.call('SET', key('token', successor), session, 'PX', absolute_ms)
redis.call('RPUSH', key('family', session), successor)
redis.call('PEXPIRE', key('family', session), absolute_ms)
for _ = remembered + 2, redis.call('LLEN', key('family', session)) do
  redis.call('UNLINK', key('token', redis.call('LPOP', key('family', session))))
end
return {'rotated', member, session, started}
