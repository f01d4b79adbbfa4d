#!/usr/bin/env bash
# Redis of a test bed, as deploy/testbed.sh asks: start (becomes the server), ready, urls.
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"
dir=$BED/redis

case "$1" in
start)
    mkdir -p "$dir"
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
CONF
    exec redis-server "$dir/redis.conf"
    ;;
ready)
    [ "$(REDISCLI_AUTH=$REDIS_PASSWORD timeout 5 redis-cli -h 127.0.0.1 -p "$REDIS_PORT" ping)" = PONG ]
    ;;
urls)
    echo "TOURIN_REDIS_URL=redis://default:$REDIS_PASSWORD@127.0.0.1:$REDIS_PORT/0"
    ;;
esac
