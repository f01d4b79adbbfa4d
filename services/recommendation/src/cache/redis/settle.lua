-- Reverts the effect of a clock that was ahead on the scores.
-- KEYS: state, scores. ARGV: now
settle(KEYS[1], KEYS[2], ARGV[1])
return redis.status_reply('OK')
