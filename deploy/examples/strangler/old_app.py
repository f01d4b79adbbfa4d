#!/usr/bin/env python3
"""The stand-in of an old application. It speaks plain HTTP and knows nothing of Tourin.

It serves tour spots, which Tourin takes over, and guests' notes, which it does not. `X-Served-By` is for the
example alone: it shows who answered.
"""

import argparse
import csv
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SPOT = re.compile(r"/api/tour-spots/(\d+)(/similar)?")


def read_spots(path):
    """Its "database": a table of spots, by id."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def overview(row):
    return {
        "id": row["id"],
        "name": row["name"],
        "address": row["address"],
        "lat": float(row["lat"]),
        "lng": float(row["lng"]),
        "imageUrl": None,
        "tags": row["tags"].split("|"),
    }


def page(row):
    spot = overview(row)
    tags = spot.pop("tags")
    return spot | {
        "description": row["description"] or None,
        "phoneNumber": row["phoneNumber"] or None,
        "tags": tags,
    }


class OldApp(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one write.
    wbufsize = -1
    spots = {}
    notes = []
    lock = threading.Lock()

    def do_GET(self):
        path = self.path.split("?")[0]
        spot = SPOT.fullmatch(path)
        if path == "/api/tour-spots":
            by_name = sorted(self.spots.values(), key=lambda row: row["name"])
            self.answer(200, [overview(row) for row in by_name])
        elif path == "/api/notes":
            with self.lock:
                self.answer(200, {"notes": len(self.notes)})
        elif spot and spot[1] in self.spots:
            row = self.spots[spot[1]]
            self.answer(200, self.similar(row) if spot[2] else page(row))
        else:
            self.answer(404, {"error": "not found"})

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/api/notes":
            self.answer(404, {"error": "not found"})
            return
        with self.lock:
            self.notes.append(text)
        self.answer(201, {"note": text.decode()})

    def similar(self, row):
        """The spots with a tag of this one. Tourin's recommendation looks at distance and members too."""
        tags = set(row["tags"].split("|"))
        others = [other for other in self.spots.values() if other is not row]
        return [overview(other) for other in others if tags & set(other["tags"].split("|"))]

    def answer(self, status, content):
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Served-By", "old-app")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Silent: a client asks hundreds of times a second."""


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--spots", required=True, help="CSV file of spots")
    options.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    given = options.parse_args()
    OldApp.spots = read_spots(given.spots)
    server = ThreadingHTTPServer(("127.0.0.1", given.port), OldApp)
    print(f"old app listening on 127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


main()
