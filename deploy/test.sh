#!/usr/bin/env bash
# Installs what the tests need and runs all of them. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The tests of separate processes start the services' own binaries; built together with the tests, nothing
# is compiled twice.
deploy/testbed.sh run -- cargo build --locked --workspace --bins --tests
exec deploy/testbed.sh run -- cargo test --locked --workspace --no-fail-fast "$@"
