-- Opens a session, unless an epoch is known that is above the one that the account had.
local member, session, token, now, epoch = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local per_member, idle_ms, absolute_ms = tonumber(ARGV[8]), ARGV[9], ARGV[10]
local until_us = ARGV[11]

local known = epoch_of(member)
if tonumber(known) > tonumber(epoch) then
  return {'behind', known}
end

local outcome = {'open'}
local others = 0
for _, other in ipairs(sessions_of(member)) do
  -- Itself is among them when this is run again.
  if other ~= session then
    others = others + 1
    if others >= per_member then
      finish(other, member, until_us)
      outcome[#outcome + 1] = other
    end
  end
end

redis.call('HSET', key('session', session), 'member', member, 'started', now, 'renewed', now,
  'epoch', epoch, 'current', token)
revoke_at_least_until(session, until_us)
redis.call('PEXPIRE', key('session', session), idle_ms)
redis.call('DEL', key('family', session))
redis.call('RPUSH', key('family', session), token)
redis.call('PEXPIRE', key('family', session), absolute_ms)
redis.call('SET', key('token', token), session, 'PX', absolute_ms)
redis.call('ZADD', key('member', member), now, session)
redis.call('PEXPIRE', key('member', member), absolute_ms)
return outcome
