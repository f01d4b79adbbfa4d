-- Counts views and bookmarks once each. The event's id, the window and the score change atomically.
-- KEYS: state, scores; then for each event: ids seen, forgotten, counts of the event's day, counts
--       of days around it...
-- ARGV: window (us), half-life (us), exponent at which the landmark moves, negligible score; then
--       for each event: number of its keys, id, its time, now, how long to keep the id (ms), how
--       long to keep the count (ms), kind and spot, weight, spot, version
-- Returns for each event: 0 counted, 1 duplicate id, 2 already counted in the window or forgotten.
local state, scores = KEYS[1], KEYS[2]
local window, move_at, negligible = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4]

local landmark, half_life, has_jumped, settled_at

local function gain(at_text, at, now_text)
    if settled_at ~= now_text then
        landmark, half_life, has_jumped = settle(state, scores, now_text)
        settled_at = now_text
    end
    if not landmark then
        -- Redis was emptied while the service runs.
        landmark, half_life = at, tonumber(ARGV[2])
        redis.call('DEL', scores)
        drop_jump(state, scores)
        redis.call('HSET', state, 'landmark', at_text, 'half_life_us', ARGV[2], 'seen', now_text)
    end
    if exponent(half_life, landmark, at) >= move_at then
        move_landmark(state, scores, half_life, landmark, at_text, negligible)
        landmark = at
    end
    return math.exp(exponent(half_life, landmark, at))
end

local function count(first_key, last_key, arg)
    local seen, forgotten, own = KEYS[first_key], KEYS[first_key + 1], KEYS[first_key + 2]
    local at_text, now_text, what = ARGV[arg + 2], ARGV[arg + 3], ARGV[arg + 6]
    local at, version_text = tonumber(at_text), ARGV[arg + 9]
    local version = tonumber(version_text)

    if redis.call('SADD', seen, ARGV[arg + 1]) == 0 then
        return 1
    end
    outlive(seen, ARGV[arg + 4])

    local order = redis.call('GET', forgotten)
    if order then
        local order_version, order_at = moment_of(order)
        if not is_later(version, at, order_version, order_at) then
            return 2
        end
    end

    local today
    for index = first_key + 2, last_key do
        local times = redis.call('HGET', KEYS[index], what)
        if times then
            for time in string.gmatch(times, '(-?%d+):?%d*') do
                if math.abs(tonumber(time) - at) < window then
                    return 2
                end
            end
        end
        if index == first_key + 2 then
            today = times
        end
    end
    local counted = moment(at_text, version_text)
    redis.call('HSET', own, what, today and (today .. ',' .. counted) or counted)
    outlive(own, ARGV[arg + 5])

    local score = tonumber(ARGV[arg + 7]) * gain(at_text, at, now_text)
    redis.call('ZINCRBY', scores, exact(score), ARGV[arg + 8])
    if has_jumped then
        redis.call('ZINCRBY', scores .. ':since', ARGV[arg + 7], ARGV[arg + 8])
    end
    return 0
end

local outcomes, key = {}, 3
for arg = 5, #ARGV, 10 do
    local keys = tonumber(ARGV[arg])
    outcomes[#outcomes + 1] = count(key, key + keys - 1, arg)
    key = key + keys
end
return outcomes
