#!/usr/bin/env bash
# Takes an old application over, route by route, while clients keep asking. docs/patterns/strangler.md explains it.
#
#   cargo build --release --workspace --bins
#   deploy/examples/strangler/run.sh [FOLDER]      FOLDER has the programs; default: target/release
#
# Needs Python 3.9, openssl and curl. It takes 10 to 30 s, listens on free ports of 127.0.0.1 and keeps nothing.
#
# Exit code: 0 if every stage took effect, the comparisons came out as expected and no request failed; else another.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=${1:-$here/../../../target/release}
# Answers that a stage must get from each path, and comparisons from each route.
enough=20
# Copies that the gateway may have under way: 16 in progress and 16 that wait (--mirror-requests).
copies_under_way=32
limit_s=120

# The mesh here is on embedded stores, whatever servers the caller's environment names.
for variable in $(compgen -e TOURIN_); do unset "$variable"; done

work=$(mktemp -d "${TMPDIR:-/tmp}/tourin-strangler.XXXXXX")
running=()

clean_up() {
    local status=$?
    trap - EXIT
    # The last one first: a client is not to fail by the end of the others.
    local at
    for ((at = ${#running[@]} - 1; at >= 0; at--)); do
        kill "${running[at]}" 2>/dev/null || true
        wait "${running[at]}" 2>/dev/null || true
    done
    if [ "$status" -ne 0 ]; then tail -n 20 "$work"/*.log >&2 || true; fi
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*"; }
fail() {
    printf 'strangler: %s\n' "$*" >&2
    exit 1
}

# Starts a program in the background, with its output in NAME.log. Its process is $started.
start() {
    : >"$work/$1.log"
    "${@:2}" >>"$work/$1.log" 2>&1 &
    started=$!
    running+=("$started")
}

# Stops a program that was started, and returns its exit code.
stop() {
    local others=() process
    for process in "${running[@]}"; do
        if [ "$process" != "$1" ]; then others+=("$process"); fi
    done
    running=("${others[@]}")
    kill "$1"
    wait "$1"
}

# Waits until a command succeeds: DESCRIPTION COMMAND...
wait_until() {
    until "${@:2}"; do
        if [ "$SECONDS" -ge "$limit_s" ]; then fail "not after $limit_s s: $1"; fi
        sleep 0.1
    done
}

# The rest of the first line that begins so in a program's output: NAME BEGINNING
logged() { sed -n "s|^$2||p" "$work/$1.log" | head -n 1; }

# --- What the gateway and the clients say

metrics() { curl -sS --max-time 5 "$operators/metrics/gateway"; }

# Reloads of the route table: applied|refused
reloads() {
    metrics | awk -v name="tourin_gateway_reloads_total{what=\"routes\",result=\"$1\"}" \
        '$1 == name { n = $2 } END { print int(n) }'
}
has_reloaded() { [ "$(reloads "$1")" -gt "$2" ]; }

# The comparisons of a route, as "SAME DIFFERENT NEITHER". A copy that was dropped at the bound was not sent.
compared() {
    metrics | awk -v route="tourin_gateway_mirrored_requests_total{route=\"$1\"," '
        index($1, route) == 1 && !/"dropped"/ {
            kind = /"same"/ ? "same" : /_differs"/ ? "different" : "neither"
            n[kind] += $2
        }
        END { print int(n["same"]), int(n["different"]), int(n["neither"]) }'
}
compared_at_least() {
    local same different neither
    read -r same different neither < <(compared "$1")
    [ $((same + different + neither)) -ge "$2" ]
}

# The answers to a path of the clients: PATH NAME...
answers() {
    awk -v path="$1" -v names=" ${*:2} " \
        '$1 == path && index(names, " " $2 " ") { n += $3 } END { print int(n) }' "$work"/*.report
}
answered_at_least() { [ "$(answers "$1" "${@:3}")" -ge "$2" ]; }

# The number of a client's report.
report_number() { awk '$1 == "report" { print $2 }' "$1"; }
reported_since() { [ "$(report_number "$1")" -ge $(($2 + 2)) ]; }

# --- What a stage does and must show

list='/api/tour-spots'
spots='/api/tour-spots/{9001..9005}'
similar='/api/tour-spots/{9001..9005}/similar'
notes='/api/notes'
spot_route='/api/tour-spots/{id}'
similar_route='/api/tour-spots/{id}/similar'
asked=("$list" "$spots" "$similar" "$notes")

no_request_failed() {
    local path failed
    for path in "${asked[@]}"; do
        failed=$(answers "$path" failed)
        if [ "$failed" -ne 0 ]; then fail "$failed requests of $path failed"; fi
    done
}

# Waits until everything that the clients report from here on began after this call.
settle() {
    local report path
    local -A from
    for report in "${reports[@]}"; do from[$report]=$(report_number "$report"); done
    for report in "${reports[@]}"; do
        wait_until "the clients report" reported_since "$report" "${from[$report]}"
    done
    # The next answer may be to a request that is under way. The one after that is not, because each path is asked
    # by one thread.
    for path in "${asked[@]}"; do from[$path]=$(answers "$path" old new failed); done
    for path in "${asked[@]}"; do
        wait_until "$path is answered" answered_at_least "$path" $((from[$path] + 2)) old new failed
    done
}

# Puts a route table in place at once, and waits until the gateway uses it for every request.
use_table() {
    say "$("$programs/gateway" --check "$1" | sed "s|.*/|  |")"
    local before
    before=$(reloads applied)
    cp "$1" "$work/routes.new"
    mv "$work/routes.new" "$work/routes.toml"
    kill -HUP "$mesh"
    wait_until "the gateway uses $1" has_reloaded applied "$before"
    settle
}

# A side, `old` or `new`, answers these paths, and the other side does not: SIDE PATH...
served_by() {
    local by=$1 other=old path number
    local -A all from from_other
    if [ "$by" = old ]; then other=new; fi
    for path in "${@:2}"; do
        from[$path]=$(answers "$path" "$by")
        from_other[$path]=$(answers "$path" "$other")
        all[$path]=$(answers "$path" old new failed)
    done
    for path in "${@:2}"; do
        wait_until "$path is answered" answered_at_least "$path" $((all[$path] + enough)) old new failed
        number=$(($(answers "$path" "$other") - from_other[$path]))
        if [ "$number" -ne 0 ]; then fail "$path: $number answers by the $other side, not by the $by one"; fi
        number=$(($(answers "$path" "$by") - from[$path]))
        printf '  %-38s %3d answers, all by the %s side\n' "$path" "$number" "$by"
    done
    no_request_failed
}

# All comparisons of these routes from now on say `same`, or all say `different`: EXPECTED ROUTE...
compares_as() {
    local expected=$1 route same different neither was
    local -A all from
    # First those of copies that are under way.
    for route in "${@:2}"; do
        read -r same different neither < <(compared "$route")
        all[$route]=$((same + different + neither))
    done
    for route in "${@:2}"; do
        wait_until "$route is compared" compared_at_least "$route" $((all[$route] + copies_under_way + 1))
        from[$route]=$(compared "$route")
    done
    for route in "${@:2}"; do
        read -ra was <<<"${from[$route]}"
        wait_until "$route is compared" compared_at_least "$route" $((was[0] + was[1] + was[2] + enough))
        read -r same different neither < <(compared "$route")
        same=$((same - was[0])) different=$((different - was[1])) neither=$((neither - was[2]))
        if [ "${!expected}" -ne $((same + different + neither)) ]; then
            fail "$route should compare as $expected: $same same, $different different, $neither not compared"
        fi
        printf '  %-38s %3d comparisons, all say %s\n' "$route" "${!expected}" "$expected"
    done
}

# --- The play

for program in tourin gateway; do
    [ -x "$programs/$program" ] || fail "no $program in $programs: cargo build --workspace --bins"
done

cp "$here/routes/1-old.toml" "$work/routes.toml"
start mesh "$programs/tourin" up --no-demo --listen 127.0.0.1:0 --data-dir "$work/data" --routes "$work/routes.toml"
mesh=$started
start old-app python3 "$here/old_app.py" --spots "$here/spots.csv"
old_app=$started
wait_until "the old application listens" grep -q listening "$work/old-app.log"
wait_until "the mesh is ready" grep -q '^Ctrl-C' "$work/mesh.log"
gateway=$(logged mesh '  URL *http://')
operators=$(logged mesh '  metrics *')
operators=${operators%/metrics}

"$programs/tourin" join-token old-app --config "$work/data/mesh.toml" >"$work/join-token"
start sidecar python3 "$here/sidecar.py" --service old-app --app "$(logged old-app 'old app listening on ')" \
    --registry-url "$(sed -n 's/^registry-url = "\(.*\)"/\1/p' "$work/data/mesh.toml")" \
    --join-token-file "$work/join-token"
sidecar=$started
is_through() { curl -fsS -o "$work/list" --max-time 5 "http://$gateway$list" 2>/dev/null; }
wait_until "the gateway reaches the old application" is_through

reports=("$work/spots.report" "$work/notes.report")
for report in "${reports[@]}"; do echo report 0 >"$report"; done
start spots python3 "$here/client.py" --gateway "$gateway" --report "${reports[0]}" \
    --get "$list" --get "$spots" --may-change "$similar"
spots_client=$started
start notes python3 "$here/client.py" --gateway "$gateway" --report "${reports[1]}" --post "$notes"
notes_client=$started

say "The old application serves everything, through the gateway."
served_by old "$list" "$spots" "$similar" "$notes"

say "The new services get copies. They have no data yet."
use_table "$here/routes/2-shadow.toml"
compares_as different "$list" "$spot_route" "$similar_route"

say "The old application's table of spots is imported."
"$programs/tourin" import "$here/spots.csv" --data-dir "$work/data" | sed 's/^/  /'
compares_as same "$list" "$spot_route"
compares_as different "$similar_route"
served_by old "$list" "$spots" "$similar" "$notes"

say "Core takes over the spots, and the old application gets the copies."
use_table "$here/routes/3-spots.toml"
served_by new "$list" "$spots"
served_by old "$similar" "$notes"
compares_as same "$list" "$spot_route"

say "The way back, and forward again."
use_table "$here/routes/2-shadow.toml"
served_by old "$list" "$spots"
use_table "$here/routes/3-spots.toml"
served_by new "$list" "$spots"

say "A table with a mistake is refused, and nothing changes."
sed 's/service = "core"/service = "Core"/' "$here/routes/4-similar.toml" >"$work/routes.new"
if "$programs/gateway" --check "$work/routes.new" 2>"$work/check"; then fail "the check lets it pass"; fi
sed 's|.*/|  |' "$work/check"
refused=$(reloads refused)
mv "$work/routes.new" "$work/routes.toml"
kill -HUP "$mesh"
wait_until "the gateway refuses it" has_reloaded refused "$refused"
settle
served_by new "$list" "$spots"
served_by old "$similar" "$notes"

say "Recommendation takes over similar spots."
use_table "$here/routes/4-similar.toml"
served_by new "$list" "$spots" "$similar"
served_by old "$notes"

say "The notes are given up. The old application and its sidecar stop."
stop "$notes_client" || fail "the notes' client stopped with $?"
no_request_failed
written=$(answers "$notes" old)
kept=$(curl -fsS --max-time 5 "http://$gateway$notes" | sed 's/[^0-9]//g')
if [ "$written" -ne "$kept" ]; then fail "$written notes were acknowledged and $kept are there"; fi
say "  $written notes were acknowledged, and all are there"
asked=("$list" "$spots" "$similar") reports=("${reports[0]}")
use_table "$here/routes/5-without-old.toml"
stop "$sidecar" || fail "the sidecar stopped with $?"
# It knows no signals, and ends by this one.
stop "$old_app" || true
served_by new "$list" "$spots" "$similar"
status=$(curl -sS -o "$work/gone" -w '%{http_code}' --max-time 5 "http://$gateway$notes")
if [ "$status" -ne 404 ]; then fail "$notes is answered $status"; fi

stop "$spots_client" || fail "the spots' client stopped with $?"
no_request_failed
stop "$mesh" || fail "the mesh stopped with $?"
say "No request failed, in $SECONDS s."
for path in "${asked[@]}" "$notes"; do
    printf '  %-38s %5d answers by the old side, %5d by the new one\n' \
        "$path" "$(answers "$path" old)" "$(answers "$path" new)"
done
