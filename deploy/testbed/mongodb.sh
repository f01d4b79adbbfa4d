#!/usr/bin/env bash
# The MongoDB-protocol server of a test bed, as deploy/testbed.sh asks: start (becomes the server),
# ready, urls.
#
# The stand-in server checks roles as MongoDB does. The tests' user reads, writes and drops databases of any name, because
# each test has its own; it is no root. The user "recommendation" is that of compose.yaml.
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"
dir=$BED/mongodb
bin=$TOOLS/venv-mongodb/bin
export USER_NAME MONGODB_PORT MONGODB_PASSWORD MONGODB_RECOMMENDATION_PASSWORD

case "$1" in
start)
    mkdir -p "$dir"
    cd "$dir"
    # An empty file of its own: it would look for one in the home folder and in /etc.
    : >"$dir/secantusd.toml"
    server=("$bin/secantusd-py" --config "$dir/secantusd.toml" --host 127.0.0.1 --port "$MONGODB_PORT"
        --cache-size 256M --log-level WARNING)
    # Users can be made only while log-ins are not asked for.
    if [ ! -f "$dir/created" ]; then
        rm -rf "$dir/data"
        "${server[@]}" --storage-path "$dir/data" &
        "$bin/python" - <<'PY'
import os, time, pymongo

deadline = time.monotonic() + 60
while True:
    try:
        client = pymongo.MongoClient(
            "127.0.0.1", int(os.environ["MONGODB_PORT"]), serverSelectionTimeoutMS=500)
        users = {info["user"] for info in client.admin.command("usersInfo")["users"]}
        for name, password, roles in [
            (os.environ["USER_NAME"], "MONGODB_PASSWORD", ["readWriteAnyDatabase", "dbAdminAnyDatabase"]),
            ("recommendation", "MONGODB_RECOMMENDATION_PASSWORD",
             [{"role": "readWrite", "db": "tourin_recommendation"}]),
        ]:
            if name not in users:
                client.admin.command("createUser", name, pwd=os.environ[password], roles=roles)
        break
    except pymongo.errors.AutoReconnect:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
PY
        kill "$!"
        wait "$!" || true
        touch "$dir/created"
    fi
    exec "${server[@]}" --storage-path "$dir/data" --auth
    ;;
ready)
    "$bin/python" - <<'PY'
import os, pymongo

client = pymongo.MongoClient(
    "127.0.0.1", int(os.environ["MONGODB_PORT"]), username=os.environ["USER_NAME"],
    password=os.environ["MONGODB_PASSWORD"], serverSelectionTimeoutMS=2000)
client.tourin.list_collection_names()
PY
    ;;
urls)
    place=127.0.0.1:$MONGODB_PORT
    echo "TOURIN_MONGODB_URL=mongodb://$USER_NAME:$MONGODB_PASSWORD@$place/?authSource=admin"
    echo "TOURIN_MONGODB_RECOMMENDATION_URL=mongodb://recommendation:$MONGODB_RECOMMENDATION_PASSWORD@$place/?authSource=admin"
    ;;
esac
