-- Ends all sessions of a member.
local member, until_us = ARGV[3], ARGV[4]

local ended = sessions_of(member)
for _, session in ipairs(ended) do
  finish(session, member, until_us)
end
return ended
