-- Decays by this half-life from now on. Scores kept under another one keep the worth they have now.
-- KEYS: state, scores. ARGV: now, half-life (us), negligible score
local kept = redis.call('HMGET', KEYS[1], 'landmark', 'half_life_us')
local landmark, half_life = tonumber(kept[1]), tonumber(kept[2])
if not landmark or not half_life then
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[1], 'landmark', ARGV[1], 'half_life_us', ARGV[2])
else
    landmark = set_back(KEYS[1], landmark, ARGV[1])
    if half_life ~= tonumber(ARGV[2]) then
        move_landmark(KEYS[1], KEYS[2], half_life, landmark, ARGV[1], ARGV[3])
        redis.call('HSET', KEYS[1], 'half_life_us', ARGV[2])
    end
end
return redis.status_reply('OK')
