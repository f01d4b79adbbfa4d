-- Removes leases that have ended. Arguments: the number of protected services, these, and the ids that may be
-- removed. Returns the ids that were, and the services whose protection begins and ends here: several
-- registries sweep, and each change is found by one.
local count = tonumber(ARGV[4])
local wanted, began, ended, gone = {}, {}, {}, {}
for i = 5, 4 + count do
  wanted[ARGV[i]] = true
  if redis.call('SADD', key('protected'), ARGV[i]) == 1 then
    began[#began + 1] = ARGV[i]
  end
end
for _, service in ipairs(redis.call('SMEMBERS', key('protected'))) do
  if not wanted[service] then
    redis.call('SREM', key('protected'), service)
    ended[#ended + 1] = service
  end
end
for i = 5 + count, #ARGV do
  local ends = tonumber(redis.call('ZSCORE', key('leases'), ARGV[i]))
  if ends and ends <= now then
    remove(ARGV[i], 'expired', '')
    gone[#gone + 1] = ARGV[i]
  end
end
return {gone, began, ended}
