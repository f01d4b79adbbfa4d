#!/usr/bin/env bash
# RabbitMQ of a test bed, as deploy/testbed.sh asks: start (becomes the server), ready, urls.
#
# The services' users are those of compose.yaml. The tests' user is an administrator, for virtual hosts of their own.
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"
dir=$BED/amqp

case "$1" in
start)
    mkdir -p "$dir/home" "$dir/config"
    shared=${BASH_SOURCE[0]%/*}/../rabbitmq
    cp "$shared/enabled_plugins" "$dir/enabled_plugins"
    export USER_NAME AMQP_PASSWORD AMQP_CORE_PASSWORD AMQP_RECOMMENDATION_PASSWORD AMQP_OPERATOR_PASSWORD
    python3 - "$shared/definitions.json" >"$dir/definitions.json" <<'PY'
import json, os, sys

with open(sys.argv[1], encoding="utf-8") as file:
    definitions = json.load(file)
for user in definitions["users"]:
    user["password"] = os.environ[f"AMQP_{user['name'].upper()}_PASSWORD"]
admin = os.environ["USER_NAME"]
definitions["users"].append(
    {"name": admin, "password": os.environ["AMQP_PASSWORD"], "tags": "administrator"})
definitions["permissions"].append(
    {"user": admin, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"})
print(json.dumps(definitions))
PY
    # Once: the data keeps them, and a restart would wait for them.
    load="load_definitions = $dir/definitions.json"
    if [ -f "$dir/created" ]; then load=; fi
    cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$AMQP_PORT
management.tcp.ip = 127.0.0.1
management.tcp.port = $AMQP_API_PORT
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = $AMQP_METRICS_PORT
$load
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 100MB
raft.wal_max_size_bytes = 67108864
CONF
    # Erlang's name server, which would otherwise become a daemon that outlives the bed.
    epmd -address 127.0.0.1 -port "$EPMD_PORT" &
    # The script of the package's own folder: the one on PATH insists on the user "rabbitmq".
    server=(/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server)
    # HOME holds Erlang's cookie.
    exec env HOME="$dir/home" \
        RABBITMQ_NODENAME="tourin-$AMQP_PORT@localhost" \
        RABBITMQ_NODE_PORT="$AMQP_PORT" \
        RABBITMQ_DIST_PORT="$ERLANG_PORT" \
        ERL_EPMD_PORT="$EPMD_PORT" \
        ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
        RABBITMQ_CONF_ENV_FILE=/dev/null \
        RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" \
        RABBITMQ_ADVANCED_CONFIG_FILE="$dir/config/advanced.config" \
        RABBITMQ_GENERATED_CONFIG_DIR="$dir/config" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins" \
        RABBITMQ_MNESIA_BASE="$dir/data" \
        RABBITMQ_LOG_BASE="$dir/log" \
        RABBITMQ_PID_FILE="$dir/pid" \
        "${server[-1]}"
    ;;
ready)
    export USER_NAME AMQP_PORT AMQP_API_PORT AMQP_PASSWORD
    python3 - <<'PY'
import base64, os, socket, urllib.request

login = base64.b64encode(f"{os.environ['USER_NAME']}:{os.environ['AMQP_PASSWORD']}".encode()).decode()
api = f"http://127.0.0.1:{os.environ['AMQP_API_PORT']}/api"
# Answers 503 while the virtual host is not up.
urllib.request.urlopen(urllib.request.Request(
    f"{api}/health/checks/virtual-hosts", headers={"Authorization": f"Basic {login}"}), timeout=5).read()
with socket.create_connection(("127.0.0.1", int(os.environ["AMQP_PORT"])), timeout=5) as s:
    s.sendall(b"AMQP\x00\x00\x09\x01")
    # A method frame on channel 0: the broker's connection.start.
    assert s.recv(3) == b"\x01\x00\x00", "no AMQP 0-9-1 handshake"
PY
    touch "$dir/created"
    ;;
urls)
    echo "TOURIN_AMQP_URL=amqp://$USER_NAME:$AMQP_PASSWORD@127.0.0.1:$AMQP_PORT/%2f"
    for user in core recommendation operator; do
        password=AMQP_${user^^}_PASSWORD
        echo "TOURIN_AMQP_${user^^}_URL=amqp://$user:${!password}@127.0.0.1:$AMQP_PORT/%2f"
    done
    echo "TOURIN_AMQP_API_URL=http://$USER_NAME:$AMQP_PASSWORD@127.0.0.1:$AMQP_API_PORT"
    ;;
esac
