#!/usr/bin/env bash
# Installs by package name what the tests need, starts private servers, and runs a command with them.
#
#   deploy/testbed.sh install          install what is missing
#   deploy/testbed.sh peers            install what the gateway is compared with; prints Envoy's program
#   deploy/testbed.sh run -- COMMAND   install, start the servers, run COMMAND, stop the servers
#   deploy/testbed.sh up               install, start the servers, leave them running and print
#                                      export lines: eval "$(deploy/testbed.sh up)"
#   deploy/testbed.sh down             stop what `up` left running
#   deploy/testbed.sh stop|kill|start SERVER
#                                      one server of the running bed: mysql, redis, mongodb, amqp or zipkin;
#                                      `stop` is SIGTERM, `kill` SIGKILL; its data stays
#
# COMMAND sees, and `up` prints:
#   TOURIN_MYSQL_URL      MariaDB or MySQL: mysql://USER:PASSWORD@127.0.0.1:PORT/tourin
#   TOURIN_REDIS_URL      Redis, append-only file on
#   TOURIN_MONGODB_URL    a server that speaks MongoDB's protocol, one node
#   TOURIN_AMQP_URL       RabbitMQ; the user may create virtual hosts
#   TOURIN_AMQP_API_URL   RabbitMQ's management API
#   TOURIN_REDIS_GATEWAY_URL, TOURIN_REDIS_CORE_URL, TOURIN_REDIS_RECOMMENDATION_URL, TOURIN_REDIS_REGISTRY_URL,
#   TOURIN_AMQP_CORE_URL, TOURIN_AMQP_RECOMMENDATION_URL, TOURIN_AMQP_OPERATOR_URL,
#   TOURIN_MONGODB_RECOMMENDATION_URL
#                         the same servers for one program's user, with the rights that it has in compose.yaml
#   TOURIN_MYSQL_ADMIN_URL  the same for a user with all rights
#   TOURIN_ZIPKIN_URL     Zipkin, storage in memory; absent where it cannot be fetched
#   TOURIN_SCHEMATHESIS   the schemathesis program
#   TOURIN_OPENAPI_TOOLS  a node_modules folder with redocly, openapi-typescript and the TypeScript compiler
#   TOURIN_BROWSER_PYTHON a Python with playwright, which drives Debian's chromium
#   TOURIN_TESTBED_STATE  the bed's folder: logs and data, gone with the bed
# A URL that is already set is kept: that server is used, and neither installed nor started here. Tests that need a
# program's user then need its URL as well.
#
# Settings, by environment:
#   TOURIN_TESTBED_DIR              what is installed but is no Debian package, and the state of `up`;
#                                   default: "testbed" in cargo's target directory
#   TOURIN_TESTBED_MYSQL            mariadb (default), or mysql: MySQL itself, from Debian's unstable suite (amd64)
#   TOURIN_TESTBED_KEEP=1           `run` and `down` keep the bed's folder, for its logs
#   TOURIN_TESTBED_START_TIMEOUT_S  how long the servers may take to start; default 120
#
# Exit code: COMMAND's; 2 for wrong usage; 1 when something could not be installed or started.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
mysql=${TOURIN_TESTBED_MYSQL:-mariadb}
tools=${TOURIN_TESTBED_DIR:-${CARGO_TARGET_DIR:-$root/target}/testbed}
# The servers' programs are in sbin, which is not on everybody's PATH.
PATH=$PATH:/usr/sbin

say() { printf 'testbed: %s\n' "$*" >&2; }
usage() {
    say "$1; usage: deploy/testbed.sh install | peers | run -- COMMAND | up | down | stop|kill|start SERVER"
    exit 2
}

case "$mysql" in
mariadb | mysql) ;;
*) usage "TOURIN_TESTBED_MYSQL is '$mysql'; expected mariadb or mysql" ;;
esac

# shellcheck source-path=SCRIPTDIR source=testbed/install.sh
. "$here/testbed/install.sh"
# shellcheck source-path=SCRIPTDIR source=testbed/bed.sh
. "$here/testbed/bed.sh"

mkdir -p "$tools"
tools=$(cd "$tools" && pwd)

run() {
    local child status=0
    bed_reap_orphans
    if [ -z "$(wanted)" ]; then
        eval "$(bed_exports)"
        exec "$@"
    fi
    bed_create "$$ $(start_time "$$")"
    trap bed_remove EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    bed_start
    eval "$(bed_exports)"
    # An interactive shell's prompt does not show that the servers depend on it.
    if [ -t 0 ] && [ "$#" -eq 1 ]; then
        case "${1##*/}" in
        bash | dash | fish | ksh | sh | zsh) say "the servers are up; leaving this shell stops them" ;;
        esac
    fi

    # On a terminal COMMAND shares our process group and the terminal's signals. Elsewhere it gets a
    # group of its own, so that a signal sent to us reaches all that COMMAND started.
    local target
    if [ -t 0 ]; then
        (
            trap - INT
            exec "$@"
        ) <&0 &
        child=$! target=$child
    else
        set -m
        "$@" <&0 &
        child=$! target=-$child
        set +m
    fi
    local signal
    for signal in HUP INT TERM; do
        # shellcheck disable=SC2064 # the signal's name and the target are meant to expand now
        trap "kill -$signal -- $target 2>/dev/null || true" "$signal"
    done
    # A trap interrupts `wait`; what counts is the end of COMMAND.
    while :; do
        status=0
        wait "$child" || status=$?
        is_running "$child" || break
    done
    exit "$status"
}

case "${1:-}" in
install)
    install
    ;;
peers)
    { flock 9 && install_peers 9>&-; } 9>"$tools/install.lock"
    ;;
run)
    shift
    if [ "${1:-}" = "--" ]; then shift; fi
    if [ "$#" -eq 0 ]; then usage "no command given"; fi
    install
    run "$@"
    ;;
up)
    install
    bed_reap_orphans
    bed_up
    ;;
down)
    bed_down
    ;;
stop | kill | start)
    if [ "$#" -ne 2 ]; then usage "$1 needs one server"; fi
    bed_one "$1" "$2"
    ;;
*)
    usage "no such command: ${1:-(none)}"
    ;;
esac
