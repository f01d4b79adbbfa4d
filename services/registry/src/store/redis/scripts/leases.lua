-- Every lease, if the argument is 1 or one of them has ended or some service is protected: the decision is
-- made outside. Returns the time, the protected services, those whose protection an operator has ended, and
-- then id, end, length, and whether it drains for each lease.
local all = ARGV[4] == '1'
local lifted = redis.call('HGETALL', key('lifted'))
local open = {}
for i = 1, #lifted, 2 do
  if tonumber(lifted[i + 1]) > now then
    open[#open + 1] = lifted[i]
  else
    redis.call('HDEL', key('lifted'), lifted[i])
  end
end
local protected = redis.call('SMEMBERS', key('protected'))
local first = redis.call('ZRANGE', key('leases'), 0, 0, 'WITHSCORES')
local some_ended = #first > 0 and tonumber(first[2]) <= now
local rows = {}
if all or some_ended or #protected > 0 then
  local leases = redis.call('ZRANGE', key('leases'), 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local id = leases[i]
    rows[#rows + 1] = {
      id, whole(tonumber(leases[i + 1])), redis.call('HGET', key('lengths'), id),
      tostring(redis.call('HEXISTS', key('draining'), id))
    }
  end
end
return {whole(now), protected, open, rows}
