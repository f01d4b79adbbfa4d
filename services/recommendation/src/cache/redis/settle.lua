-- Takes back what a clock did to the scores that was ahead.
-- KEYS: state, scores. ARGV: now
settle(KEYS[1], KEYS[2], ARGV[1])
return redis.status_reply('OK')
