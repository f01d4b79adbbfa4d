#!/bin/sh
# Prints the users of Redis as lines of redis.conf, for compose.yaml and the test bed. Each user has the keys and
# commands of its service, and no more; the code that uses them is named beside it.
#
# Passwords are read from REDIS_GATEWAY_PASSWORD, REDIS_CORE_PASSWORD and REDIS_RECOMMENDATION_PASSWORD, and from
# REDIS_REGISTRY_PASSWORD where several registries share a Redis. What becomes of the user "default" is the caller's to
# say. Keys begin with the defaults of --session-redis-prefix, --recommendation-redis-prefix and
# --registry-redis-prefix: change them here as well. REDIS_TEST_PREFIX is a second pattern of such prefixes, for
# the test bed, where each test has keys of its own.
set -eu

tests=${REDIS_TEST_PREFIX:-}
gateway="%R~{tourin:sessions}:revocations %R~{tourin:sessions}:log ${tests:+%R~{$tests\}:revocations %R~{$tests\}:log}"
counts="~{tourin:sessions}:rate:* ${tests:+~{$tests\}:rate:*}"
core="~{tourin:sessions}:* ${tests:+~{$tests\}:*}"
registry="~{tourin:registry}:* ${tests:+~{$tests\}:*}"
recommendation="~tourin:{trend}:* ${tests:+~$tests:*}"

# SCRIPT LOAD and EVALSHA run the services' scripts; a script may do what its caller may.
cat <<CONF
# gateway/src/auth/revocation/stream.rs: reads the ended sessions. gateway/src/rate_limits: counts calls. PING is for
# health checks.
user gateway reset on >$REDIS_GATEWAY_PASSWORD \
 $gateway \
 $counts \
 +select +ping +get +xread +xrevrange \
 +set +time +evalsha +script|load
# services/core/src/store/redis: sessions, refresh tokens, revocations, wrong passwords, views.
user core reset on >$REDIS_CORE_PASSWORD $core \
 +select +ping +time +info +evalsha +script|load \
 +get +set +exists +del +unlink +pexpire +pttl \
 +hget +hset +hdel +hmget \
 +llen +lpop +lrange +rpush \
 +xadd +xlen +xrange +xtrim \
 +zadd +zmscore +zrem +zremrangebyrank +zremrangebyscore +zrevrange
# services/recommendation/src/cache/redis: the trend.
user recommendation reset on >$REDIS_RECOMMENDATION_PASSWORD $recommendation \
 +select +ping +time +info +evalsha +script|load \
 +get +set +del +pexpire +pttl +sadd \
 +hget +hset +hdel +hmget +hgetall \
 +zincrby +zmscore +zrangebyscore +zrem +zremrangebyscore +zrevrange +zunionstore
CONF
[ -z "${REDIS_REGISTRY_PASSWORD:-}" ] || cat <<CONF
# services/registry/src/store/redis: instances, leases, changes, acknowledgements, uses of join tokens.
user registry reset on >$REDIS_REGISTRY_PASSWORD $registry \
 +select +ping +time +info +evalsha +script|load \
 +get +set +incr +expireat \
 +hget +hset +hdel +hlen +hkeys +hgetall +hexists +hincrby \
 +sadd +srem +smembers +sismember \
 +xadd +xrange +xread \
 +zadd +zscore +zrem +zrange +zrangebyscore
CONF
