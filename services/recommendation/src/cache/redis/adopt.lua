-- Adopts a half-life. Existing scores keep their current value.
-- KEYS: state, scores. ARGV: now, half-life (us), negligible score
local landmark, half_life = settle(KEYS[1], KEYS[2], ARGV[1])
if not landmark then
    redis.call('DEL', KEYS[2])
    drop_jump(KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[1], 'landmark', ARGV[1], 'half_life_us', ARGV[2], 'seen', ARGV[1])
elseif half_life ~= tonumber(ARGV[2]) then
    -- Scores of another half-life cannot be restored.
    drop_jump(KEYS[1], KEYS[2])
    move_landmark(KEYS[1], KEYS[2], half_life, landmark, ARGV[1], ARGV[3])
    redis.call('HSET', KEYS[1], 'half_life_us', ARGV[2])
end
return redis.status_reply('OK')
