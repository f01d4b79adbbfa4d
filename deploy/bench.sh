#!/usr/bin/env bash
# Builds and runs a benchmark on the servers of a test bed. Arguments after its name go to it.
#
#   deploy/bench.sh relay-to-effect            events/s from the outbox to the trend, against the bare broker
#   deploy/bench.sh bookmark-to-trend          how long a bookmark takes to show in the trend
#   deploy/bench.sh search [SPOTS [SECONDS]]   searches by 100 clients over a million spots
#   deploy/bench.sh start                      how long a mesh on servers takes until all of it is ready
#   deploy/bench.sh tracing                    what tracing costs the gateway and core
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?"which one? the head of deploy/bench.sh lists them"}
shift
release=${CARGO_TARGET_DIR:-target}/release
case "$name" in
relay-to-effect)
    set -- "$release/relay-to-effect" "$@"
    ;;
bookmark-to-trend)
    set -- "$release/bookmark-to-trend" --tourin "$release/tourin" "$@"
    ;;
search)
    if ! command -v wrk >/dev/null; then
        echo "bench: wrk is missing: apt-get install wrk" >&2
        exit 1
    fi
    set -- deploy/bench/search.sh "$release" "$@"
    ;;
start)
    set -- deploy/bench/start.py "$release/tourin" "$@"
    ;;
tracing)
    set -- "$release/tracing-cost" --gateway "$release/gateway" --core "$release/core" "$@"
    ;;
*)
    echo "bench: no benchmark named $name; the head of deploy/bench.sh lists them" >&2
    exit 2
    ;;
esac
deploy/testbed.sh install
# All of the workspace: another choice of packages has other features, and would compile nearly everything again.
cargo build --locked --release --workspace --bins
exec deploy/testbed.sh run -- "$@"
