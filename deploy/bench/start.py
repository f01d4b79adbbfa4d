#!/usr/bin/env python3
"""How long `tourin up` takes on the servers of a test bed until every part is ready: the first time, after SIGKILL and after
SIGTERM. Run by deploy/bench.sh. On a loaded machine the time is that of its processors: what the threads waited for one
is printed beside it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PARTS = {"gateway", "registry", "core", "recommendation-1"}
LIMIT_S = 120
POLL_S = 0.02


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def readiness(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as answer:
        return json.load(answer)
    except OSError:
        return {}


def start(tourin, folder, name):
    port = free_port()
    command = [tourin, "up", "--data-dir", folder, "--listen", f"127.0.0.1:{free_port()}"]
    command += ["--operator-listen", f"127.0.0.1:{port}"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready = {}
    while not PARTS <= ready.keys():
        if process.poll() is not None or time.monotonic() > began + LIMIT_S:
            sys.exit(f"not whole: {ready}")
        for part, said in readiness(port).items():
            if said.get("status") == "ready":
                ready.setdefault(part, time.monotonic() - began)
        time.sleep(POLL_S)
    tasks = f"/proc/{process.pid}/task"
    waited = 0
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/schedstat") as stat:
            waited += int(stat.read().split()[1]) / 1e9
    with open(f"/proc/{process.pid}/stat") as stat:
        used = stat.read().rsplit(")", 1)[1].split()
    used = (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")
    parts = ", ".join(f"{part} {at:.2f}" for part, at in sorted(ready.items(), key=lambda x: x[1]))
    print(
        f"{name:12} whole after {max(ready.values()):5.2f} s ({parts}); "
        f"processor {used:.2f} s, threads waited for one {waited:.2f} s",
        flush=True,
    )
    return process


def main():
    tourin, folder = sys.argv[1], tempfile.mkdtemp()
    endings = [("first", signal.SIGKILL), ("after kill", signal.SIGTERM), ("after stop", signal.SIGTERM)]
    try:
        for name, ending in endings:
            process = start(tourin, folder, name)
            process.send_signal(ending)
            process.wait()
    finally:
        shutil.rmtree(folder)


main()
