-- Returns the landmark, the half-life, the latest time seen, and the best scores.
-- KEYS: state, scores. ARGV: index of the last score
local kept = redis.call('HMGET', KEYS[1], 'landmark', 'half_life_us', 'seen')
if not kept[1] or not kept[2] then
    return false
end
return { kept[1], kept[2], kept[3] or kept[1], redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1], 'WITHSCORES') }
