#!/usr/bin/env bash
# Builds and runs a benchmark on the servers of a test bed. Arguments after its name go to it.
#
#   deploy/bench.sh relay-to-effect            events/s from the outbox to the trend, against the bare broker
#   deploy/bench.sh bookmark-to-trend          how long a bookmark takes to show in the trend
#   deploy/bench.sh search [SPOTS [SECONDS]]   searches by 100 clients over a million spots
#   deploy/bench.sh start                      how long a mesh on servers takes until all of it is ready
#   deploy/bench.sh tracing                    what tracing costs the gateway and core
#   deploy/bench.sh gateway [compare|flatness] the gateway beside nginx, HAProxy, Envoy and a bare Pingora; or its
#                                              instructions per request with many instances and routes
#   deploy/bench.sh mtls                       what mTLS costs the gateway, and handshakes per second
#   deploy/bench.sh revocation                 how soon a session that ends is refused by ten gateways
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?"which one? the head of deploy/bench.sh lists them"}
shift
release=${CARGO_TARGET_DIR:-target}/release
case "$name" in
gateway)
    what=${1:-compare}
    [ "$#" -eq 0 ] || shift
    envoy=$(deploy/testbed.sh peers)
    dist=${release%/release}/dist plain=${release%/release}/plain
    cargo build --locked --release --workspace --bin gateway-peers
    cargo build --locked --profile dist --workspace --bin bench-gateway
    if [ "$what" = compare ]; then
        cargo build --locked --profile plain --package tourin-bench-bare-pingora
        cargo build --locked --profile dist --package tourin-bench-bare-pingora --features mimalloc
        set -- --bare-pingora "$plain/bare-pingora" --best-pingora "$dist/bare-pingora" --envoy "$envoy" "$@"
    fi
    exec "$release/gateway-peers" "$what" --gateway "$dist/bench-gateway" "$@"
    ;;
relay-to-effect)
    set -- "$release/relay-to-effect" "$@"
    ;;
bookmark-to-trend)
    set -- "$release/bookmark-to-trend" --tourin "$release/tourin" "$@"
    ;;
search)
    set -- deploy/bench/search.sh "$release" "$@"
    ;;
start)
    set -- deploy/bench/start.py "$release/tourin" "$@"
    ;;
tracing)
    set -- "$release/tracing-cost" --gateway "$release/gateway" --core "$release/core" "$@"
    ;;
mtls)
    set -- "$release/mtls-cost" measure "$@"
    ;;
revocation)
    set -- "$release/revocation-lag" --core "$release/core" --gateway "$release/gateway" "$@"
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
