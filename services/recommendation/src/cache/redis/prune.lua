-- Removes negligible scores. Ids and counts expire by themselves.
-- KEYS: state, scores. ARGV: now, negligible value, maximum number to remove
local landmark, half_life = settle(KEYS[1], KEYS[2], ARGV[1])
if not landmark then
    return 0
end
landmark = math.min(landmark, tonumber(ARGV[1]))
local least = tonumber(ARGV[2]) * math.exp(exponent(half_life, landmark, tonumber(ARGV[1])))
local small = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. exact(least), 'LIMIT', 0, ARGV[3])
if #small == 0 then
    return 0
end
return redis.call('ZREM', KEYS[2], unpack(small))
