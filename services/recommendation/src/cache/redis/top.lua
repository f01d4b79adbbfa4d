-- The best scores with the landmark and half-life they are as of.
-- KEYS: state, scores. ARGV: index of the last one
local kept = redis.call('HMGET', KEYS[1], 'landmark', 'half_life_us')
if not kept[1] or not kept[2] then
    return false
end
return { kept[1], kept[2], redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1], 'WITHSCORES') }
