#!/usr/bin/env bash
# Searches and looks at the map by 100 clients at once over many spots, asked of core itself: on MariaDB, then on
# SQLite. Run it by `deploy/bench.sh search [SPOTS [SECONDS]]`, within a test bed. Core answers peers of a mesh alone:
# there is a registry, and `search-load` asks with a gateway's certificate.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
release=$1 spots=${2:-1000000} seconds=${3:-20}
: "${TOURIN_MYSQL_URL:?is not set; run this by deploy/bench.sh search}"

work=$(mktemp -d)
core=
registry=
trap '[ -z "$core" ] || kill "$core"; [ -z "$registry" ] || kill "$registry"; rm -rf "$work"' EXIT
"$here/spots.py" spots "$spots" >"$work/spots.csv"
"$here/spots.py" searches 20000 >"$work/searches.txt"
"$here/spots.py" searches 200000 --distinct >"$work/distinct.txt"
"$here/spots.py" maps 5000 >"$work/maps.txt"
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
port=$(free_port)
registry_port=$(free_port)

# Sessions and traces have nothing to do with it. Events go to a queue that keeps none.
unset TOURIN_REDIS_URL TOURIN_MONGODB_URL TOURIN_ZIPKIN_URL
export TOURIN_AMQP_PREFIX=search-bench.
broker() {
    curl -sf -o /dev/null -X "$1" -H 'Content-Type: application/json' -d "$3" "$TOURIN_AMQP_API_URL/api/$2"
}
exchange=search-bench.event.tour-spot.ex
broker PUT "exchanges/%2F/$exchange" '{"type": "topic", "durable": true}'
broker PUT "queues/%2F/search-bench" '{"durable": true, "arguments": {"x-max-length": 1}}'
broker POST "bindings/%2F/e/$exchange/q/search-bench" '{"routing_key": "#"}'
export TOURIN_NO_DEMO=true TOURIN_LOG=warn,tourin_registry_api=off
export TOURIN_REGISTRY_URL=https://127.0.0.1:$registry_port
tokens=$work/join-tokens
"$release/registry" --listen "127.0.0.1:$registry_port" --data-dir "$work/registry" --join-tokens "$tokens" &
registry=$!
until curl -sf "http://127.0.0.1:$registry_port/readyz" >/dev/null; do sleep 0.2; done

# The processor time that core has used, in hundredths of a second.
ticks() {
    local stat
    stat=$(<"/proc/$core/stat")
    # The fields behind the program's name, of which these are its own time and the kernel's.
    read -ra stat <<<"${stat##*) }"
    echo $((stat[11] + stat[12]))
}

run() {
    local before figures requests
    before=$(ticks)
    figures=$("$release/search-load" --core "127.0.0.1:$port" --paths "$work/$2" --duration-s "$seconds" \
        --join-token-file "$tokens/gateway/join-token")
    requests=${figures##*'"requests":'}
    requests=${requests%%[,\}]*}
    echo "$1: ${figures%\}},\"core_cpu_us\":$((($(ticks) - before) * 10000 / requests))}"
}

# Starts core on the database of the environment and measures it; its data folder is the argument.
measure() {
    "$release/tourin" import "$work/spots.csv" --data-dir "$1" </dev/null
    "$release/core" --listen "127.0.0.1:$port" --data-dir "$1" --join-token-file "$tokens/core/join-token" &
    core=$!
    local began=$SECONDS
    # Ready once the search index has been read.
    until curl -sf "http://127.0.0.1:$port/readyz" >/dev/null; do sleep 0.2; done
    echo "ready after $((SECONDS - began)) s"
    # The import's events are sent meanwhile.
    until curl -s "http://127.0.0.1:$port/metrics" | grep -q '^tourin_outbox_pending 0'; do sleep 1; done
    run "different searches" distinct.txt
    run "popular searches" searches.txt
    run "map" maps.txt
    grep -E 'VmRSS|VmHWM' "/proc/$core/status"
    kill "$core"
    wait "$core" || true
    core=
}
echo "on MariaDB"
measure "$work/core"
echo "on SQLite"
unset TOURIN_MYSQL_URL
measure "$work/core-sqlite"
