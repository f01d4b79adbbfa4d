-- Ends the member's sessions below the epoch, but for the one that is kept, which rises to it and gets the
-- token as its only one. Doing it again, or in another order, changes nothing more.
local member, epoch, keep, until_us, epoch_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local token = ARGV[8]

local function replace_tokens(session)
  local family, session_key = key('family', session), key('session', session)
  local absolute_ms = math.max(1, redis.call('PTTL', family))
  for _, old in ipairs(redis.call('LRANGE', family, 0, -1)) do
    redis.call('UNLINK', key('token', old))
  end
  redis.call('UNLINK', family, key('salt', session))
  redis.call('HDEL', session_key, 'previous', 'used', 'grace_until')
  redis.call('HSET', session_key, 'current', token)
  redis.call('RPUSH', family, token)
  redis.call('PEXPIRE', family, absolute_ms)
  redis.call('SET', key('token', token), session, 'PX', absolute_ms)
end

if tonumber(epoch_of(member)) < tonumber(epoch) then
  redis.call('SET', key('epoch', member), epoch, 'PX', epoch_ms)
end
local ended = {}
for _, session in ipairs(sessions_of(member)) do
  local of_session = redis.call('HGET', key('session', session), 'epoch')
  if tonumber(of_session) < tonumber(epoch) then
    if session == keep then
      redis.call('HSET', key('session', session), 'epoch', epoch)
      if token ~= '' then
        replace_tokens(session)
      end
    else
      finish(session, member, until_us)
      ended[#ended + 1] = session
    end
  end
end
return ended
