#!/usr/bin/env python3
"""Puts an application that speaks plain HTTP into a mesh of Tourin, unchanged.

A sidecar beside each instance of the application, on the same machine. It
 - joins the mesh: a key, a certificate by a join token, renewed at half of its life;
 - keeps the instance registered, and takes it out of the registry when it stops;
 - accepts mTLS from gateways alone, and passes the bytes on to the application.

It reads no HTTP, so WebSockets pass as well. The calls are those of services/registry-api/src/wire.rs. It needs
Python 3.9 and the openssl command, and nothing else.
"""

import argparse
import asyncio
import base64
import hashlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from urllib.parse import urlsplit

HEARTBEAT_S = 1
# Bears a heartbeat that times out. Gateways notice by themselves, and sooner, that an instance is gone.
LEASE_MS = 10_000
CALL_TIMEOUT_S = 5
HANDSHAKE_TIMEOUT_S = 10
# How long a gateway may take to stop sending; the registry allows no more.
DRAIN_WAIT_MS = 2_000
# How long requests in flight may take to finish after that.
DRAIN_S = 10
MAX_CONNECTIONS = 1_000
CHUNK_BYTES = 64 * 1024


def say(text):
    print(f"sidecar: {text}", flush=True)


def openssl(*arguments):
    run = subprocess.run(
        ["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
    )
    return run.stdout


class Refused(Exception):
    """The registry answered, and not with success."""

    def __init__(self, status, body):
        super().__init__(f"the registry says {status}: {body[:300].decode(errors='replace')}")
        self.status = status


class Member:
    """An instance of a service of the mesh: its key, its certificate, and its calls to the registry."""

    def __init__(self, given, folder):
        self.service = given.service
        self.instance = f"{given.service}-{secrets.token_hex(6)}"
        self.token_file = given.join_token_file
        registry = urlsplit(given.registry_url)
        self.registry = (registry.hostname, registry.port)
        self.key, self.chain = (os.path.join(folder, name) for name in ("key.pem", "chain.pem"))
        # The registry signs Ed25519 keys alone. What a request says of names does not count.
        openssl("genpkey", "-algorithm", "ed25519", "-out", self.key)
        self.csr = openssl("req", "-new", "-key", self.key, "-subj", f"/CN={self.service}")
        self.mesh = self.roots = None
        self.lifetime_s = self.expires = 0
        # One for the whole life: the listener asks it at each handshake.
        self.server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self.server_tls.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would outlive the peer's certificate.
        self.server_tls.num_tickets = 0

    def join(self):
        """The first certificate, by the join token. The token names the mesh and the hash of its root."""
        with open(self.token_file, encoding="ascii") as file:
            token = file.read().strip()
        claims = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        self.mesh = claims["iss"]
        root = self.pinned_root(claims["root"])
        tls = ssl.create_default_context(cadata=root)
        self.take(self.call("POST", "/v1/certificates", self.request(), tls, token))

    def pinned_root(self, wanted):
        """The root that the token names. The registry sends its roots in the handshake."""
        host, port = self.registry
        shown = openssl("s_client", "-connect", f"{host}:{port}", "-showcerts")
        for pem in re.findall("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", shown, re.DOTALL):
            digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") == wanted:
                return pem
        if shown.count("BEGIN CERTIFICATE"):
            raise SystemExit("sidecar: the registry is not the one that the join token names")
        raise ConnectionError(f"no registry at {host}:{port}")

    def renew(self):
        """A new certificate, by the old one."""
        self.take(self.call("POST", "/v1/certificates", self.request()))

    def request(self):
        return {"csr": self.csr, "instance": self.instance}

    def take(self, issued):
        with open(self.chain, "w", encoding="ascii") as file:
            file.write(issued["chain"])
        self.roots = issued["roots"]
        self.lifetime_s = issued["lifetime_s"]
        self.expires = time.time() + self.lifetime_s
        self.server_tls.load_cert_chain(self.chain, self.key)
        # Adds those of a new root. The old one is forgotten with the process.
        self.server_tls.load_verify_locations(cadata=self.roots)

    def call(self, method, path, body=None, tls=None, token=None):
        """Calls the registry, whose certificate has its name, whatever address it is reached at."""
        if tls is None:
            tls = ssl.create_default_context(cadata=self.roots)
            tls.load_cert_chain(self.chain, self.key)
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        plain = socket.create_connection(self.registry, CALL_TIMEOUT_S)
        with tls.wrap_socket(plain, server_hostname=f"registry.{self.mesh}") as connected:
            http_call = http.client.HTTPConnection(*self.registry)
            http_call.sock = connected
            http_call.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = http_call.getresponse()
            text = answer.read()
        if answer.status >= 300:
            raise Refused(answer.status, text)
        return json.loads(text) if text else None

    def own(self, rest=""):
        return f"/v1/instances/{self.service}/{self.instance}{rest}"

    def register(self, address):
        self.call("PUT", self.own(), {"address": address, "lease_ms": LEASE_MS})

    def beat(self, address):
        """Renews what is due: the certificate at half of its life, the lease each time."""
        left = self.expires - time.time()
        if left <= 0:
            self.join()
        elif left < self.lifetime_s / 2:
            self.renew()
        try:
            self.call("POST", self.own("/renew"))
        except Refused as refused:
            if refused.status != 404:
                raise
            # It was restarted, or the lease has ended.
            self.register(address)

    def is_gateway(self, certificate):
        return ("DNS", f"gateway.{self.mesh}") in certificate.get("subjectAltName", ())


class Listener:
    """Passes connections of gateways on to the application."""

    def __init__(self, member, app):
        self.member = member
        self.app = app
        # By connection: whether the application has the last word, so that no request is in flight.
        self.is_answered = {}
        self.closing = asyncio.Event()

    async def accept(self, reader, writer):
        certificate = writer.get_extra_info("peercert")
        if self.member.is_gateway(certificate) and len(self.is_answered) < MAX_CONNECTIONS:
            # No longer than the peer's certificate lasts. A gateway uses a new connection after each renewal.
            end = ssl.cert_time_to_seconds(certificate["notAfter"])
            try:
                await self.forward(reader, writer, end - time.time())
            except OSError:
                # The application does not accept, or one side has gone. The gateway sees the closed
                # connection, and tries another instance.
                pass
        writer.close()

    async def forward(self, reader, writer, limit_s):
        app_reader, app_writer = await asyncio.open_connection(*self.app)
        ways = [
            asyncio.create_task(self.copy(reader, app_writer, writer, False)),
            asyncio.create_task(self.copy(app_reader, writer, writer, True)),
            asyncio.create_task(self.closing.wait()),
        ]
        self.is_answered[writer] = True
        try:
            await asyncio.wait(ways, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self.is_answered[writer]
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            app_writer.close()

    async def copy(self, source, target, connection, is_answer):
        while data := await source.read(CHUNK_BYTES):
            self.is_answered[connection] = is_answer
            target.write(data)
            await target.drain()

    async def finish(self):
        """Waits for requests in flight, for a while."""
        deadline = time.monotonic() + DRAIN_S
        while not all(self.is_answered.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def close(self):
        """Closes what is open. A gateway keeps idle connections."""
        self.closing.set()
        while self.is_answered:
            await asyncio.sleep(0.05)


async def until(stop, wait_s):
    """Whether `stop` is set, now or within a time."""
    try:
        await asyncio.wait_for(stop.wait(), wait_s)
    except asyncio.TimeoutError:
        pass
    return stop.is_set()


async def keep(member, act, stop):
    """Repeats a call until it succeeds or `stop`. Says each new failure once."""
    last = None
    while not stop.is_set():
        try:
            return await asyncio.to_thread(act)
        except Refused as refused:
            if refused.status in (401, 403):
                raise SystemExit(f"sidecar: {refused}") from refused
            failure = str(refused)
        except (OSError, http.client.HTTPException) as error:
            failure = f"the registry cannot be called: {error}"
        if failure != last:
            say(failure)
            last = failure
        await until(stop, HEARTBEAT_S)


async def run(given, folder):
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    member = Member(given, folder)
    await keep(member, member.join, stop)
    if stop.is_set():
        return
    host, port = address(given.listen)
    listener = Listener(member, address(given.app))
    server = await asyncio.start_server(
        listener.accept, host, port, ssl=member.server_tls, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
    )
    own = "{}:{}".format(*server.sockets[0].getsockname()[:2])
    await keep(member, lambda: member.register(own), stop)
    say(f"{member.service}/{member.instance} is in the mesh at {own}, for {given.app}")
    while not await until(stop, HEARTBEAT_S):
        await keep(member, lambda: member.beat(own), stop)
    # First no gateway sends anything more, then what is in flight ends, then nothing listens.
    try:
        await asyncio.to_thread(member.call, "POST", member.own(f"/drain?wait_ms={DRAIN_WAIT_MS}"))
        await listener.finish()
        await asyncio.to_thread(member.call, "DELETE", member.own())
    except (Refused, OSError, http.client.HTTPException) as error:
        say(f"not taken out of the registry, which will notice by its lease: {error}")
    server.close()
    await listener.close()
    say("left the mesh")


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--registry-url", required=True, help="https://HOST:PORT")
    options.add_argument("--join-token-file", required=True, help="made by `tourin join-token SERVICE`")
    options.add_argument("--service", required=True, help="its name in route tables")
    options.add_argument("--app", required=True, help="HOST:PORT of the application")
    options.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT that gateways reach")
    given = options.parse_args()
    # For its owner alone, and gone with the process.
    with tempfile.TemporaryDirectory(prefix="tourin-sidecar.") as folder:
        asyncio.run(run(given, folder))


main()
