-- Returns the landmark, the half-life, the latest time seen, and the scores of some spots.
-- KEYS: state, scores. ARGV: the spots
local kept = redis.call('HMGET', KEYS[1], 'landmark', 'half_life_us', 'seen')
if not kept[1] or not kept[2] then
    return false
end
return { kept[1], kept[2], kept[3] or kept[1], redis.call('ZMSCORE', KEYS[2], unpack(ARGV)) }
