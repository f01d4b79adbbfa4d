#!/usr/bin/env bash
# MariaDB of a test bed, or MySQL where TOURIN_TESTBED_MYSQL=mysql, as deploy/testbed.sh asks: start (becomes the server),
# ready, urls.
#
# The tests' user has all rights on databases whose names begin with "tourin", because tests make databases of their own.
# In compose.yaml core's user has one database alone. What concerns the whole server, such as read_only, is for "admin".
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"
dir=$BED/mysql
as=()
if [ "$(id -u)" -eq 0 ]; then as=(--user=root); fi

if [ "$TESTBED_MYSQL" = mysql ]; then
    # MySQL's programs are of a newer Debian, so they run by the loader and with the libraries of that one.
    suite=$TOOLS/mysql/root
    loaded=("$suite/lib64/ld-linux-x86-64.so.2" --library-path "$suite/usr/lib/x86_64-linux-gnu")
    server=("${loaded[@]}" "$suite/usr/sbin/mysqld" --no-defaults --basedir="$suite/usr")
    client=("${loaded[@]}" "$suite/usr/bin/mysql")
    new_data() { "${server[@]}" "${as[@]}" --initialize-insecure --datadir="$dir/data"; }
    # No binary log, as MariaDB has none unless it is asked: a commit waits for the disk once.
    options=(--mysqlx=OFF --secure-file-priv=NULL --skip-log-bin)
else
    server=(mariadbd --no-defaults)
    client=(mariadb)
    new_data() {
        mariadb-install-db --no-defaults "${as[@]}" --datadir="$dir/data" --skip-test-db \
            --auth-root-authentication-method=normal
    }
    options=()
fi

case "$1" in
start)
    if [ ! -f "$dir/created" ]; then
        rm -rf "$dir"
        mkdir "$dir"
        new_data
        touch "$dir/created"
    fi
    # Run at every start, before the first connection.
    cat >"$dir/init.sql" <<SQL
CREATE DATABASE IF NOT EXISTS tourin;
CREATE USER IF NOT EXISTS '$USER_NAME'@'127.0.0.1' IDENTIFIED BY '$MYSQL_PASSWORD';
GRANT ALL PRIVILEGES ON \`tourin%\`.* TO '$USER_NAME'@'127.0.0.1';
CREATE USER IF NOT EXISTS 'admin'@'127.0.0.1' IDENTIFIED BY '$MYSQL_ADMIN_PASSWORD';
GRANT ALL PRIVILEGES ON *.* TO 'admin'@'127.0.0.1' WITH GRANT OPTION;
DROP USER IF EXISTS 'root'@'localhost';
SQL
    exec "${server[@]}" "${as[@]}" --datadir="$dir/data" --socket="$dir/socket" \
        --pid-file="$dir/pid" --bind-address=127.0.0.1 --port="$MYSQL_PORT" --skip-name-resolve \
        --init-file="$dir/init.sql" --character-set-server=utf8mb4 --max-connections=500 \
        --innodb-buffer-pool-size=1G "${options[@]}"
    ;;
ready)
    MYSQL_PWD=$MYSQL_PASSWORD "${client[@]}" --no-defaults --protocol=tcp --host=127.0.0.1 \
        --port="$MYSQL_PORT" --user="$USER_NAME" --connect-timeout=2 --skip-column-names \
        --execute='SELECT VERSION()' tourin
    ;;
urls)
    echo "TOURIN_MYSQL_URL=mysql://$USER_NAME:$MYSQL_PASSWORD@127.0.0.1:$MYSQL_PORT/tourin"
    echo "TOURIN_MYSQL_ADMIN_URL=mysql://admin:$MYSQL_ADMIN_PASSWORD@127.0.0.1:$MYSQL_PORT/tourin"
    ;;
esac
