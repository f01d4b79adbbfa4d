-- Forgets what names a person, up to a time.
-- KEYS: forgotten, counts of that time's day, counts of the days before...
-- ARGV: the time, how long it is remembered (ms)
local at = tonumber(ARGV[1])
local before = redis.call('GET', KEYS[1])
if not before or tonumber(before) < at then
    redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
end
outlive(KEYS[1], ARGV[2])

local counts = redis.call('HGETALL', KEYS[2])
for index = 1, #counts, 2 do
    local later = {}
    for time in string.gmatch(counts[index + 1], '-?%d+') do
        if tonumber(time) > at then
            later[#later + 1] = time
        end
    end
    if #later == 0 then
        redis.call('HDEL', KEYS[2], counts[index])
    else
        redis.call('HSET', KEYS[2], counts[index], table.concat(later, ','))
    end
end
for index = 3, #KEYS do
    redis.call('UNLINK', KEYS[index])
end
return redis.status_reply('OK')
