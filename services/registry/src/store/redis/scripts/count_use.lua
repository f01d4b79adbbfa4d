-- Counts a use of a join token. Arguments: its id, how many it has, its end in seconds since the epoch, what
-- stands for the request, and how long that may be repeated (milliseconds). Returns whether the token had a use
-- left, or the request is a repeated one, which is no other use.
local used, limit, request = key('join:' .. ARGV[4]), tonumber(ARGV[5]), ARGV[7]
if redis.call('GET', used .. ':' .. request) then
  return 1
end
if tonumber(redis.call('GET', used) or 0) >= limit then
  return 0
end
redis.call('INCR', used)
redis.call('EXPIREAT', used, ARGV[6])
redis.call('SET', used .. ':' .. request, '1', 'PX', ARGV[8])
return 1
