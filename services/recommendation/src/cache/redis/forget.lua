-- Deletes the records that name a person, up to an order to forget the person.
-- KEYS: forgotten, counts of the days that may have some...
-- ARGV: the order's time, its version, how long the order is kept (ms)
local at, version = tonumber(ARGV[1]), tonumber(ARGV[2])
local before = redis.call('GET', KEYS[1])
local is_new = true
if before then
    local before_version, before_at = moment_of(before)
    is_new = is_later(version, at, before_version, before_at)
end
if is_new then
    redis.call('SET', KEYS[1], moment(ARGV[1], ARGV[2]), 'KEEPTTL')
end
outlive(KEYS[1], ARGV[3])

for index = 2, #KEYS do
    local counts = redis.call('HGETALL', KEYS[index])
    for field = 1, #counts, 2 do
        local later = {}
        for counted in string.gmatch(counts[field + 1], '[^,]+') do
            local counted_version, counted_at = moment_of(counted)
            if is_later(counted_version, counted_at, version, at) then
                later[#later + 1] = counted
            end
        end
        if #later == 0 then
            redis.call('HDEL', KEYS[index], counts[field])
        else
            redis.call('HSET', KEYS[index], counts[field], table.concat(later, ','))
        end
    end
end
return redis.status_reply('OK')
