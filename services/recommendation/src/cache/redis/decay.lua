-- Put before the other scripts. Scores are as of one landmark, kept with the half-life in `state`.
-- Times are microseconds since the epoch, which a double holds exactly until the year 2255.

-- Redis formats numbers with 14 digits by itself; a score needs all 17.
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

-- Takes the landmark back to now from a time to come, where a clock that was ahead has moved it. The
-- scores stay: what they are worth there, they are worth now.
local function set_back(state, landmark, now)
    if landmark > tonumber(now) then
        redis.call('HSET', state, 'landmark', now)
        return tonumber(now)
    end
    return landmark
end

-- A key lives at least this long from now on, and never shorter than it would have.
local lives = {}
local function outlive(key, ttl_ms)
    local ttl = tonumber(ttl_ms)
    -- Time stands still while a script runs.
    lives[key] = lives[key] or redis.call('PTTL', key)
    if lives[key] < ttl then
        redis.call('PEXPIRE', key, ttl_ms)
        lives[key] = ttl
    end
end
