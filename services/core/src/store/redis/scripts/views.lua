-- Begins the windows of views that became events. Old windows are removed, and the oldest of too many.
local views = KEYS[1]
local ended, max, ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]

for at = 4, #ARGV, 2 do
  redis.call('ZADD', views, ARGV[at], ARGV[at + 1])
end
redis.call('ZREMRANGEBYSCORE', views, '-inf', ended)
redis.call('ZREMRANGEBYRANK', views, 0, -1 - max)
redis.call('PEXPIRE', views, ms)
