# Part of deploy/testbed.sh: a bed is a temporary folder with the servers that run in it.
# shellcheck shell=bash
#
#   bed.env        ports and passwords, for deploy/testbed/SERVER.sh
#   owner          "PID START-TIME" of the `run` that owns the bed, or "up"
#   SERVER.pid     "PID START-TIME" of the server, which leads a process group of its own
#   SERVER.log     what it says
#   SERVER/        its data

: "${here:?is set by deploy/testbed.sh}" "${tools:?is set by deploy/testbed.sh}"

# The slowest to start comes first.
servers=(amqp zipkin mysql mongodb redis)
start_timeout_s=${TOURIN_TESTBED_START_TIMEOUT_S:-120}
stop_timeout_s=30
bed=

# The start time tells a process from a later one with the same number.
start_time() {
    local line fields
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -ra fields <<<"${line##*) }"
    # A process that has ended and was not waited for is no process to us.
    [ "${fields[0]}" != Z ] || return 1
    printf '%s\n' "${fields[19]}"
}

is_running() { start_time "$1" >/dev/null; }

# Reads "PID START-TIME" and prints PID if that process is alive.
living() {
    local pid started
    { read -r pid started <"$1"; } 2>/dev/null || return 1
    [ "$(start_time "$pid" || true)" = "$started" ] || return 1
    printf '%s\n' "$pid"
}

group_is_running() {
    local stat line fields
    for stat in /proc/[0-9]*/stat; do
        { read -r line <"$stat"; } 2>/dev/null || continue
        read -ra fields <<<"${line##*) }"
        if [ "${fields[2]}" = "$1" ] && [ "${fields[0]}" != Z ]; then return 0; fi
    done
    return 1
}

url_variable() { printf 'TOURIN_%s_URL\n' "${1^^}"; }

# The servers that are not given by the environment, which this bed starts.
wanted() {
    local server variable
    for server in "${servers[@]}"; do
        variable=$(url_variable "$server")
        # Zipkin may be missing.
        if [ "$server" = zipkin ] && ! zipkin_is_fetched; then continue; fi
        if [ -z "${!variable:-}" ]; then printf '%s\n' "$server"; fi
    done
}

bed_create() {
    # Readable by its owner alone: it has passwords in it.
    bed=$(mktemp -d "${TMPDIR:-/tmp}/tourin-bed.XXXXXX")
    printf '%s\n' "$1" >"$bed/owner"
    # Ports below the kernel's range for outgoing connections, which cannot collide with one.
    python3 - >"$bed/bed.env" <<'PY'
import os, random, secrets, socket

held = []
def port():
    while True:
        number, s = random.randrange(15000, 32000), socket.socket()
        try:
            s.bind(("127.0.0.1", number))
        except OSError:
            s.close()
            continue
        held.append(s)
        return number

for name in ("MYSQL", "REDIS", "MONGODB", "AMQP", "AMQP_API", "AMQP_METRICS", "ERLANG", "EPMD", "ZIPKIN"):
    print(f"{name}_PORT={port()}")
print("USER_NAME=tourin")
print(f"TESTBED_MYSQL={os.environ.get('TOURIN_TESTBED_MYSQL', 'mariadb')}")
for name in ("MYSQL", "MYSQL_ADMIN", "REDIS", "REDIS_GATEWAY", "REDIS_CORE", "REDIS_RECOMMENDATION",
             "REDIS_REGISTRY",
             "MONGODB", "MONGODB_RECOMMENDATION", "AMQP", "AMQP_CORE", "AMQP_RECOMMENDATION", "AMQP_OPERATOR"):
    print(f"{name}_PASSWORD={secrets.token_hex(16)}")
PY
}

bed_launch() {
    local server=$1
    # setsid: a Ctrl-C meant for COMMAND is not meant for the servers.
    BED=$bed TOOLS=$tools setsid "$here/testbed/$server.sh" start \
        </dev/null >>"$bed/$server.log" 2>&1 9>&- &
    printf '%s %s\n' "$!" "$(start_time "$!" || true)" >"$bed/$server.pid"
    # Its end is ours to report, not the shell's.
    disown "$!"
}

bed_failed() {
    say "$1 $2; the end of its log:"
    tail -n 20 "$bed/$1.log" >&2
    exit 1
}

# Waits until each of the servers really answers: a query, a ping, a log-in.
bed_wait() {
    local pending=("$@") left server port deadline=$((SECONDS + start_timeout_s))
    # shellcheck source=/dev/null
    . "$bed/bed.env"
    while [ "${#pending[@]}" -gt 0 ]; do
        left=()
        for server in "${pending[@]}"; do
            living "$bed/$server.pid" >/dev/null || bed_failed "$server" "ended while it started"
            port=${server^^}_PORT
            # The cheap question first; the true one costs a program start.
            if ! { : <>"/dev/tcp/127.0.0.1/${!port}"; } 2>/dev/null ||
                ! BED=$bed TOOLS=$tools "$here/testbed/$server.sh" ready >"$bed/$server.probe" 2>&1; then
                left+=("$server")
            fi
        done
        pending=("${left[@]}")
        if [ "${#pending[@]}" -gt 0 ]; then
            if [ "$SECONDS" -ge "$deadline" ]; then
                cat "$bed/${pending[0]}.probe" >&2 2>/dev/null || true
                bed_failed "${pending[0]}" "did not answer within $start_timeout_s s"
            fi
            sleep 0.2
        fi
    done
}

bed_start() {
    local mine=() server
    mapfile -t mine < <(wanted)
    for server in "${mine[@]}"; do bed_launch "$server"; done
    bed_wait "${mine[@]}"
    # MariaDB names itself in its version.
    if [ -f "$bed/mysql.probe" ]; then say "the MySQL server's version is $(tail -n 1 "$bed/mysql.probe")"; fi
}

bed_exports() {
    local server
    for server in $(wanted); do
        BED=$bed TOOLS=$tools "$here/testbed/$server.sh" urls
    done | sed 's/^/export /'
    printf 'export TOURIN_SCHEMATHESIS=%q\n' "$tools/venv/bin/schemathesis"
    printf 'export TOURIN_OPENAPI_TOOLS=%q\n' "$tools/npm-openapi/node_modules"
    printf 'export TOURIN_BROWSER_PYTHON=%q\n' "$tools/venv-browser/bin/python"
    if [ -n "$bed" ]; then printf 'export TOURIN_TESTBED_STATE=%q\n' "$bed"; fi
}

# bed_signal SIGNAL SERVER: signals the server's process group and waits for its end.
bed_signal() {
    local pid started deadline=$((SECONDS + stop_timeout_s))
    { read -r pid started <"$bed/$2.pid"; } 2>/dev/null || return 0
    # The number now belongs to another process.
    if is_running "$pid" && [ "$(start_time "$pid" || true)" != "$started" ]; then return 0; fi
    # Once: to some a second SIGTERM means something else.
    kill "-$1" -- "-$pid" 2>/dev/null || true
    while group_is_running "$pid"; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "$2 (process $pid) did not end within $stop_timeout_s s of SIG$1"
            return 1
        fi
        sleep 0.1
    done
    rm -f "$bed/$2.pid"
}

# What the servers hold goes with them, so there is nothing for them to save.
bed_remove() {
    local server
    for server in "${servers[@]}"; do bed_signal KILL "$server" || true; done
    if [ -n "${TOURIN_TESTBED_KEEP:-}" ]; then
        say "kept $bed"
        rm -f "$bed/owner"
    else
        rm -rf "$bed"
    fi
}

# Removes the beds of runs that were killed before they could do so.
bed_reap_orphans() {
    local owner
    for owner in "${TMPDIR:-/tmp}"/tourin-bed.*/owner; do
        if [ -O "$owner" ] && [ "$(cat "$owner")" != up ] && ! living "$owner" >/dev/null; then
            bed=$(dirname "$owner")
            say "removing $bed, whose owner is gone"
            bed_remove
        fi
    done
    bed=
}

bed_up() {
    exec 9>"$tools/up.lock"
    flock 9
    if [ -f "$tools/up" ]; then
        bed=$(cat "$tools/up")
        local server all=1
        for server in $(wanted); do living "$bed/$server.pid" >/dev/null || all=; done
        if [ -n "$all" ]; then
            bed_exports
            return
        fi
        say "the bed of the last \`up\` is not whole; starting a new one"
        bed_remove
        rm -f "$tools/up"
    fi
    bed_create up
    trap bed_remove EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    bed_start
    printf '%s\n' "$bed" >"$tools/up"
    trap - EXIT HUP INT TERM
    bed_exports
}

bed_down() {
    exec 9>"$tools/up.lock"
    flock 9
    if [ ! -f "$tools/up" ]; then
        say "nothing is up"
        return
    fi
    bed=$(cat "$tools/up")
    bed_remove
    rm -f "$tools/up"
}

bed_one() {
    local server known=
    for server in "${servers[@]}"; do [ "$server" != "$2" ] || known=1; done
    if [ -z "$known" ]; then usage "no such server: $2"; fi
    bed=${TOURIN_TESTBED_STATE:-$(cat "$tools/up" 2>/dev/null || true)}
    if [ ! -f "$bed/bed.env" ]; then
        say "no bed is running"
        exit 1
    fi
    case "$1" in
    stop) bed_signal TERM "$2" ;;
    kill) bed_signal KILL "$2" ;;
    start)
        living "$bed/$2.pid" >/dev/null || bed_launch "$2"
        bed_wait "$2"
        ;;
    esac
}
