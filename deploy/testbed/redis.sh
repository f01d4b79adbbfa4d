#!/usr/bin/env bash
# Redis of a test bed, as deploy/testbed.sh asks: start (becomes the server), ready, urls.
#
# The services' users are those of compose.yaml, and may use the keys of tests as well. The user "default" may do
# everything, for what tests do behind a service's back.
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"
dir=$BED/redis

case "$1" in
start)
    mkdir -p "$dir"
    export REDIS_GATEWAY_PASSWORD REDIS_CORE_PASSWORD REDIS_RECOMMENDATION_PASSWORD REDIS_REGISTRY_PASSWORD
    export REDIS_TEST_PREFIX='test-*'
    users=$("${BASH_SOURCE[0]%/*}/../redis/users.sh")
    # A file, so that `ps` does not show the password. Each write is in the append-only
    # file before it is answered: it outlives the process, though not the machine.
    cat >"$dir/redis.conf" <<CONF
bind 127.0.0.1
port $REDIS_PORT
requirepass $REDIS_PASSWORD
dir $dir
save ""
appendonly yes
appendfsync everysec
$users
CONF
    exec redis-server "$dir/redis.conf"
    ;;
ready)
    [ "$(REDISCLI_AUTH=$REDIS_PASSWORD timeout 5 redis-cli -h 127.0.0.1 -p "$REDIS_PORT" ping)" = PONG ]
    ;;
urls)
    place=127.0.0.1:$REDIS_PORT
    echo "TOURIN_REDIS_URL=redis://default:$REDIS_PASSWORD@$place/0"
    # As in compose.yaml: sessions and the trend are in different databases.
    echo "TOURIN_REDIS_GATEWAY_URL=redis://gateway:$REDIS_GATEWAY_PASSWORD@$place/0"
    echo "TOURIN_REDIS_CORE_URL=redis://core:$REDIS_CORE_PASSWORD@$place/0"
    echo "TOURIN_REDIS_RECOMMENDATION_URL=redis://recommendation:$REDIS_RECOMMENDATION_PASSWORD@$place/1"
    echo "TOURIN_REDIS_REGISTRY_URL=redis://registry:$REDIS_REGISTRY_PASSWORD@$place/0"
    ;;
esac
