#!/usr/bin/env bash
# MariaDB of a test bed, as deploy/testbed.sh asks: start (becomes the server), ready, urls.
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"
dir=$BED/mysql

case "$1" in
start)
    as=()
    if [ "$(id -u)" -eq 0 ]; then as=(--user=root); fi
    if [ ! -f "$dir/created" ]; then
        rm -rf "$dir"
        mkdir "$dir"
        mariadb-install-db --no-defaults "${as[@]}" --datadir="$dir/data" --skip-test-db \
            --auth-root-authentication-method=normal
        touch "$dir/created"
    fi
    # Run at every start, before the first connection.
    cat >"$dir/init.sql" <<SQL
CREATE DATABASE IF NOT EXISTS tourin;
CREATE USER IF NOT EXISTS '$USER_NAME'@'127.0.0.1' IDENTIFIED BY '$MYSQL_PASSWORD';
GRANT ALL PRIVILEGES ON *.* TO '$USER_NAME'@'127.0.0.1' WITH GRANT OPTION;
DROP USER IF EXISTS 'root'@'localhost';
SQL
    exec mariadbd --no-defaults "${as[@]}" --datadir="$dir/data" --socket="$dir/socket" \
        --pid-file="$dir/pid" --bind-address=127.0.0.1 --port="$MYSQL_PORT" --skip-name-resolve \
        --init-file="$dir/init.sql" --character-set-server=utf8mb4 --max-connections=500 \
        --innodb-buffer-pool-size=1G
    ;;
ready)
    MYSQL_PWD=$MYSQL_PASSWORD mariadb --no-defaults --protocol=tcp --host=127.0.0.1 \
        --port="$MYSQL_PORT" --user="$USER_NAME" --connect-timeout=2 --execute='SELECT 1' tourin
    ;;
urls)
    echo "TOURIN_MYSQL_URL=mysql://$USER_NAME:$MYSQL_PASSWORD@127.0.0.1:$MYSQL_PORT/tourin"
    ;;
esac
