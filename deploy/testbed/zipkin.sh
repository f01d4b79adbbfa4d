#!/usr/bin/env bash
# Zipkin of a test bed, as deploy/testbed.sh asks: start (becomes the server), ready, urls.
set -euo pipefail
# shellcheck source=/dev/null
. "$BED/bed.env"

case "$1" in
start)
    # Traces are kept in memory and end with the server.
    exec env QUERY_PORT="$ZIPKIN_PORT" STORAGE_TYPE=mem MEM_MAX_SPANS=100000 SELF_TRACING_ENABLED=false \
        java -Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
        '-Darmeria.ports[0].ip=127.0.0.1' "-Darmeria.ports[0].port=$ZIPKIN_PORT" \
        '-Darmeria.ports[0].protocols[0]=http' \
        -jar "$TOOLS/zipkin/zipkin-server-slim.jar"
    ;;
ready)
    python3 - "$ZIPKIN_PORT" <<'PY'
import json, sys, urllib.request

with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=5) as answer:
    assert json.load(answer)["status"] == "UP"
PY
    ;;
urls)
    echo "TOURIN_ZIPKIN_URL=http://127.0.0.1:$ZIPKIN_PORT"
    ;;
esac
