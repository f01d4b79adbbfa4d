-- Ends a session of the member, and the others with it if it is still there. The one named is told
-- of even when it is over.
local member, session, everywhere, until_us = ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local ended = {session}
if everywhere == '1' and redis.call('HGET', key('session', session), 'member') == member then
  for _, other in ipairs(sessions_of(member)) do
    if other ~= session then
      ended[#ended + 1] = other
    end
  end
end
for _, one in ipairs(ended) do
  finish(one, member, until_us)
end
return ended
