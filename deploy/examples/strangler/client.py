#!/usr/bin/env python3
"""A client that keeps asking until SIGTERM, one thread for each path, and counts what it gets.

A GET fails unless it is answered 200, and with what the same path has answered before unless --may-change. A POST
fails unless it is answered 201. --report has the counts as lines of PATH NAME NUMBER, after the number of the report, and is replaced ten times a
second. `old` and `new` are answers by who gave them; `failed` has its reasons on standard error.
"""

import argparse
import http.client
import itertools
import os
import re
import signal
import sys
import threading
import time

# Between two requests of a thread. Fast enough to meet each moment of a reload, slow enough for a debug build.
PAUSE_S = 0.01
TIMEOUT_S = 15


class Asker(threading.Thread):
    def __init__(self, given, method, path, may_change):
        super().__init__(daemon=True)
        host, _, port = given.gateway.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
        self.method, self.path, self.may_change = method, path, may_change
        # {1..3} in a path stands for these numbers in turn.
        spread = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path)
        self.paths = [path]
        if spread:
            begin, first, last, end = spread.groups()
            self.paths = [f"{begin}{n}{end}" for n in range(int(first), int(last) + 1)]
        self.counts = {"old": 0, "new": 0, "failed": 0}
        self.known = {}

    def run(self):
        for path in itertools.cycle(self.paths):
            if STOP.is_set():
                break
            try:
                self.counts[self.ask(path)] += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.counts["failed"] += 1
                print(f"client: {self.method} {path}: {error!r}", file=sys.stderr, flush=True)
                self.connection.close()
            time.sleep(PAUSE_S)

    def ask(self, path):
        body = b"a note" if self.method == "POST" else None
        self.connection.request(self.method, path, body)
        answer = self.connection.getresponse()
        content = answer.read()
        expected = 201 if self.method == "POST" else 200
        assert answer.status == expected, f"{answer.status} {content[:200]!r}"
        before = self.known.setdefault(path, content)
        assert self.may_change or before == content, f"{before!r} has become {content!r}"
        return "old" if answer.getheader("X-Served-By") else "new"


def report(path, number, askers):
    with open(f"{path}.new", "w", encoding="ascii") as file:
        print("report", number, file=file)
        for asker in askers:
            for name, count in asker.counts.items():
                print(asker.path, name, count, file=file)
    os.replace(f"{path}.new", path)


STOP = threading.Event()


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gateway", required=True, help="HOST:PORT")
    options.add_argument("--report", required=True, help="file")
    options.add_argument("--get", action="append", default=[], help="path")
    options.add_argument("--may-change", action="append", default=[], help="path, also a GET")
    options.add_argument("--post", action="append", default=[], help="path")
    given = options.parse_args()
    askers = [Asker(given, "GET", path, False) for path in given.get]
    askers += [Asker(given, "GET", path, True) for path in given.may_change]
    askers += [Asker(given, "POST", path, False) for path in given.post]
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    for asker in askers:
        asker.start()
    number = 1
    while not STOP.wait(0.1):
        report(given.report, number, askers)
        number += 1
    for asker in askers:
        asker.join(TIMEOUT_S)
    report(given.report, number, askers)


main()
