-- What all scripts begin with. Their other keys are named here and not handed over: all have the
-- tag of these two, and with it the one slot.
local stream, log = KEYS[1], KEYS[2]
local base, new_log = ARGV[1], ARGV[2]

local function key(kind, name)
  return base .. kind .. ':' .. name
end

-- Forgets a session with its tokens.
local function drop(session, member)
  local family = key('family', session)
  for _, token in ipairs(redis.call('LRANGE', family, 0, -1)) do
    redis.call('UNLINK', key('token', token))
  end
  redis.call('UNLINK', key('session', session), key('salt', session), family)
  redis.call('ZREM', key('member', member), session)
end

-- Remembers until when a revocation of the session must be kept: the latest time that was asked for, since tokens
-- with a longer lifetime may have been issued under other settings.
local function revoke_at_least_until(session, until_us)
  local known = redis.call('HGET', key('session', session), 'revoke_until')
  if tonumber(known or 0) < tonumber(until_us) then
    redis.call('HSET', key('session', session), 'revoke_until', until_us)
  end
end

-- Tells the gateways that a session has ended, or what further fields say.
local function tell(session, until_us, ...)
  redis.call('SET', log, new_log, 'NX')
  redis.call('XADD', stream, 'MAXLEN', '~', 400000, '*', 'session', session, 'until', until_us, ...)
end

-- Forgets a session and tells the gateways, which remember it until its last token has expired.
local function finish(session, member, until_us)
  local of_tokens = redis.call('HGET', key('session', session), 'revoke_until')
  if tonumber(of_tokens or 0) > tonumber(until_us) then
    until_us = of_tokens
  end
  drop(session, member)
  tell(session, until_us)
end

-- The member's sessions that Redis still has, the newest first.
local function sessions_of(member)
  local sessions = {}
  for _, session in ipairs(redis.call('ZREVRANGE', key('member', member), 0, -1)) do
    if redis.call('EXISTS', key('session', session)) == 1 then
      sessions[#sessions + 1] = session
    else
      redis.call('ZREM', key('member', member), session)
    end
  end
  return sessions
end

-- The epoch below which the member's sessions are over.
local function epoch_of(member)
  return redis.call('GET', key('epoch', member)) or '0'
end

-- When a session is over that is not renewed again.
local function over_at(started, renewed, absolute, idle)
  return math.min(tonumber(started) + absolute, tonumber(renewed) + idle)
end

-- Milliseconds from one time to another, as an expiry takes them.
local function ms_between(from, to)
  return string.format('%.0f', math.max(1, math.ceil((to - from) / 1000)))
end

-- Has a key live for so long at least. It never lives shorter: our clock may be ahead at this moment.
local function keep_for(name, ms)
  if redis.call('PTTL', name) < tonumber(ms) then
    redis.call('PEXPIRE', name, ms)
  end
end
