-- Shared functions, prepended to the other scripts. All scores are relative to one landmark, which
-- is kept with the half-life in `state`. Times are microseconds since the epoch, which a double
-- holds exactly until the year 2255.

-- Redis formats numbers with 14 digits. A score needs all 17.
local function exact(number)
    return string.format('%.17g', number)
end

-- lambda * (to - from)
local function exponent(half_life, from, to)
    return math.log(2) * (to - from) / half_life
end

local function move_landmark(state, scores, half_life, from, to, negligible)
    local factor = math.exp(-exponent(half_life, from, tonumber(to)))
    redis.call('ZUNIONSTORE', scores, 1, scores, 'WEIGHTS', exact(factor))
    redis.call('ZREMRANGEBYSCORE', scores, '-inf', '(' .. negligible)
    redis.call('HSET', state, 'landmark', to)
end

-- A step of the clock that counts as a jump: a half-life, at least 5 minutes.
local function step_of(half_life)
    return math.max(half_life, 300000000)
end
-- A jump is trusted after the clock has advanced for this long: an hour.
local CONFIRMED_AFTER = 3600000000

local function drop_jump(state, scores)
    redis.call('DEL', scores .. ':before', scores .. ':since')
    redis.call('HDEL', state, 'jumped', 'jump_landmark')
end

-- Brings the scores to the current time. When the clock jumps ahead, the earlier scores are kept in
-- a copy, with the plain weights counted since the jump. If the clock goes back, the trend is
-- restored from these two. Returns landmark, half-life, and whether the clock has jumped; nothing
-- without scores.
local function settle(state, scores, now_text)
    local kept = redis.call('HMGET', state, 'landmark', 'half_life_us', 'seen', 'jumped', 'jump_landmark')
    local landmark, half_life = tonumber(kept[1]), tonumber(kept[2])
    if not landmark or not half_life then
        return nil
    end
    local now, seen, jumped = tonumber(now_text), tonumber(kept[3]) or landmark, tonumber(kept[4])
    local step = step_of(half_life)
    if jumped and seen - jumped >= CONFIRMED_AFTER then
        drop_jump(state, scores)
        jumped = nil
    end
    if now > seen + step and not jumped then
        redis.call('ZUNIONSTORE', scores .. ':before', 1, scores)
        redis.call('DEL', scores .. ':since')
        redis.call('HSET', state, 'jumped', now_text, 'jump_landmark', kept[1])
        jumped = now
    elseif now < seen - step then
        if jumped then
            landmark = tonumber(kept[5])
            local gain = exact(math.exp(exponent(half_life, landmark, now)))
            redis.call('ZUNIONSTORE', scores, 2, scores .. ':before', scores .. ':since', 'WEIGHTS', 1, gain)
            redis.call('HSET', state, 'landmark', kept[5])
            drop_jump(state, scores)
            jumped = nil
        else
            -- The scores keep their value: the landmark moves back with the clock.
            landmark = landmark - (seen - now)
            redis.call('HSET', state, 'landmark', string.format('%.0f', landmark))
        end
    end
    redis.call('HSET', state, 'seen', now_text)
    return landmark, half_life, jumped ~= nil
end

-- Whether one change is later than another: by version (0 means none and is the lowest), then by time.
local function is_later(version, at, other_version, other_at)
    if version ~= other_version then
        return version > other_version
    end
    return at > other_at
end

-- The stored form of a moment: the time, followed by a colon and the version unless it is 0.
local function moment(at_text, version_text)
    return version_text == '0' and at_text or (at_text .. ':' .. version_text)
end

local function moment_of(text)
    local at, version = string.match(text, '^(-?%d+):?(%d*)$')
    return tonumber(version) or 0, tonumber(at)
end

-- Extends the life of a key to at least this long. Never shortens it.
local lives = {}
local function outlive(key, ttl_ms)
    local ttl = tonumber(ttl_ms)
    -- Redis's clock does not advance while a script runs, so the TTL can be cached.
    lives[key] = lives[key] or redis.call('PTTL', key)
    if lives[key] < ttl then
        redis.call('PEXPIRE', key, ttl_ms)
        lives[key] = ttl
    end
end
