-- The member and the session of a refresh token, used up or not.
local session = redis.call('GET', key('token', ARGV[3]))
local member = session and redis.call('HGET', key('session', session), 'member')
if not member then
  return {}
end
return {member, session}
