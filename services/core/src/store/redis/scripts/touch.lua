-- Moves the idle clock of a session that is the member's and open; says when it began and was renewed.
local member, session = ARGV[3], ARGV[4]
local now, absolute, idle = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local until_us = ARGV[8]

local session_key = key('session', session)
local kept = redis.call('HMGET', session_key, 'member', 'started', 'renewed', 'epoch')
local owner, started, renewed, epoch = unpack(kept)
if owner ~= member or now >= over_at(started, renewed, absolute, idle)
    or tonumber(epoch_of(member)) > tonumber(epoch) then
  return {}
end
revoke_at_least_until(session, until_us)
if now > tonumber(renewed) then
  renewed = ARGV[5]
  redis.call('HSET', session_key, 'renewed', renewed)
  keep_for(session_key, ms_between(now, over_at(started, renewed, absolute, idle)))
end
return {started, renewed}
