-- Counts views and bookmarks, each once: the event's id, the window and the score together.
-- KEYS: state, scores; then of each event: ids seen, forgotten, counts of the event's day, counts of
--       days around it...
-- ARGV: window (us), half-life (us), exponent at which the landmark moves, negligible score; then of
--       each event: number of its keys, id, its time, now, how long the id is remembered (ms), how
--       long the count is (ms), kind and spot, weight, spot
-- Returns of each event 0 when it counts, 1 when it was there before, 2 when the like of it counted.
local state, scores = KEYS[1], KEYS[2]
local window, move_at, negligible = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4]

local kept = redis.call('HMGET', state, 'landmark', 'half_life_us')
local landmark, half_life = tonumber(kept[1]), tonumber(kept[2])

local function gain(at_text, at, now_text)
    if not landmark or not half_life then
        -- Redis was emptied under us.
        landmark, half_life = at, tonumber(ARGV[2])
        redis.call('DEL', scores)
        redis.call('HSET', state, 'landmark', at_text, 'half_life_us', ARGV[2])
    end
    landmark = set_back(state, landmark, now_text)
    if exponent(half_life, landmark, at) >= move_at then
        move_landmark(state, scores, half_life, landmark, at_text, negligible)
        landmark = at
    end
    return math.exp(exponent(half_life, landmark, at))
end

local function count(first_key, last_key, arg)
    local seen, forgotten, own = KEYS[first_key], KEYS[first_key + 1], KEYS[first_key + 2]
    local at_text, now_text, what = ARGV[arg + 2], ARGV[arg + 3], ARGV[arg + 6]
    local at = tonumber(at_text)

    if redis.call('SADD', seen, ARGV[arg + 1]) == 0 then
        return 1
    end
    outlive(seen, ARGV[arg + 4])

    local forgotten_at = redis.call('GET', forgotten)
    if forgotten_at and tonumber(forgotten_at) >= at then
        return 2
    end

    local today
    for index = first_key + 2, last_key do
        local times = redis.call('HGET', KEYS[index], what)
        if times then
            for time in string.gmatch(times, '-?%d+') do
                if math.abs(tonumber(time) - at) < window then
                    return 2
                end
            end
        end
        if index == first_key + 2 then
            today = times
        end
    end
    redis.call('HSET', own, what, today and (today .. ',' .. at_text) or at_text)
    outlive(own, ARGV[arg + 5])

    local score = tonumber(ARGV[arg + 7]) * gain(at_text, at, now_text)
    redis.call('ZINCRBY', scores, exact(score), ARGV[arg + 8])
    return 0
end

local outcomes, key = {}, 3
for arg = 5, #ARGV, 9 do
    local keys = tonumber(ARGV[arg])
    outcomes[#outcomes + 1] = count(key, key + keys - 1, arg)
    key = key + keys
end
return outcomes
