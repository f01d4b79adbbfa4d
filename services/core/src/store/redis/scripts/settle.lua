-- Ends the member's sessions below the epoch, but for the one that is kept, which rises to it. Doing
-- it again, or in another order, ends nothing more.
local member, epoch, keep, until_us, epoch_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

if tonumber(epoch_of(member)) < tonumber(epoch) then
  redis.call('SET', key('epoch', member), epoch, 'PX', epoch_ms)
end
local ended = {}
for _, session in ipairs(sessions_of(member)) do
  local of_session = redis.call('HGET', key('session', session), 'epoch')
  if tonumber(of_session) < tonumber(epoch) then
    if session == keep then
      redis.call('HSET', key('session', session), 'epoch', epoch)
    else
      finish(session, member, until_us)
      ended[#ended + 1] = session
    end
  end
end
return ended
