#!/usr/bin/env bash
# Installs what the tests need and runs all of them, with the servers of a test bed. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
deploy/testbed.sh install
# Tests of separate processes start the services' own programs. They are built here, before the servers
# start.
cargo build --locked --workspace --bins --tests
exec deploy/testbed.sh run -- cargo test --locked --workspace --no-fail-fast "$@"
