#!/usr/bin/env bash
# Installs by package name what the tests need, and runs a command with it.
#
#   deploy/testbed.sh install          install what is missing
#   deploy/testbed.sh run -- COMMAND   install, export where things are, run COMMAND
#
# Everything but Debian packages goes into one folder: $TOURIN_TESTBED_DIR, by default
# "testbed" in cargo's target directory. COMMAND sees:
#   TOURIN_SCHEMATHESIS   the schemathesis program
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bed=${TOURIN_TESTBED_DIR:-${CARGO_TARGET_DIR:-$root/target}/testbed}
schemathesis_version=4

say() { printf 'testbed: %s\n' "$*" >&2; }

apt_install() {
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then sudo=(sudo); fi
    say "installing with apt-get: $*"
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

install() {
    local packages=()
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v make >/dev/null || packages+=(make)
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then packages+=(python3 python3-venv); fi
    if [ "${#packages[@]}" -gt 0 ]; then apt_install "${packages[@]}"; fi

    if [ ! -x "$bed/venv/bin/schemathesis" ]; then
        say "installing schemathesis into $bed/venv"
        mkdir -p "$bed"
        python3 -m venv "$bed/venv"
        "$bed/venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$schemathesis_version.*"
    fi
}

case "${1:-}" in
install)
    install
    ;;
run)
    shift
    if [ "${1:-}" = "--" ]; then shift; fi
    if [ "$#" -eq 0 ]; then
        say "no command given; usage: deploy/testbed.sh run -- COMMAND"
        exit 2
    fi
    install
    export TOURIN_SCHEMATHESIS="$bed/venv/bin/schemathesis"
    exec "$@"
    ;;
*)
    say "usage: deploy/testbed.sh install | run -- COMMAND"
    exit 2
    ;;
esac
