"""Who may carry calls to another machine's replicas, and where: keys, certificates, and the address of a replica there.

Each end makes a key of its own, which never leaves its machine; only certificates travel. One trusts the very certificate of
the other and nothing else, no authority: who holds no key that control has made known gets no further than the handshake.
`bridge` is the node's end, `serving.dial` the gateway's and control's.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import socket
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

from modelyard.errors import Damaged, Invalid, Unavailable

SCHEME = "tls://"
# What every certificate says whose it is: which one it is, not what it says, is what counts.
NAME = "modelyard"
# A bridge's answer to a token, before the replica's own bytes: this, the node's clock and an end of line.
READY = b"ready "
# Seconds in which a peer must take what was sent or say that it lives: a machine that is gone says nothing at all.
_LOST = 10
_CONFIG = f"""[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = {NAME}
[extensions]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:{NAME}
"""
_COMMAND = ("openssl", "req", "-x509", "-config", "/dev/stdin", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
_OUTPUT = ("-nodes", "-days", "36500", "-keyout", "-", "-out", "-")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)
_ADDRESS = re.compile(r"tls://(?P<host>.+):(?P<port>\d{1,5})/(?P<token>[a-z0-9-]{1,40})#(?P<der>[A-Za-z0-9_=-]+)")
# X509_V_FLAG_NO_CHECK_TIME: a certificate that is known itself needs no dates, and clocks of machines differ.
_NO_DATES = 0x200000


class Address(NamedTuple):
    """A replica behind a bridge: where that listens, the replica's token, and the bridge's certificate (DER). As text:
    'tls://HOST:PORT/TOKEN#CERTIFICATE', the certificate in URL-safe base64."""

    host: str
    port: int
    token: str
    certificate: bytes

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}:{self.port}/{self.token}#{base64.urlsafe_b64encode(self.certificate).decode()}"


def parse(address: str) -> Address:
    """Raises `Invalid` where it is no address behind a bridge."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise Invalid(f"'{address[:100]}' is no replica's address: expected {SCHEME}HOST:PORT/TOKEN#CERTIFICATE.")
    return Address(found["host"], int(found["port"]), found["token"], base64.urlsafe_b64decode(found["der"]))


def identity(path: Path) -> str:
    """The certificate (PEM) of the identity at `path`: a file of mode 0600 with a key and its certificate, made where there is
    none. Raises `Unavailable` where it cannot be made, `Damaged` where it is none."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_made())
        fresh.rename(path)
    found = _CERTIFICATE.search(path.read_text())
    if found is None:
        raise Damaged(f"{path} holds no certificate: remove it, and start the platform again to have another made.")
    return found[0]


def _made() -> str:
    try:
        done = subprocess.run([*_COMMAND, *_OUTPUT], input=_CONFIG, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(
            f"No key can be made for the way to replicas on other machines: {error}. Install the program 'openssl'."
        ) from error
    if done.returncode:
        raise Unavailable(f"No key can be made for the way to replicas on other machines: openssl said {done.stderr[-300:]!r}.")
    return done.stdout


def server(identity: Path, client: str) -> ssl.SSLContext:
    """For the end that listens; `client` is the only certificate (PEM) that it accepts."""
    return _context(ssl.PROTOCOL_TLS_SERVER, identity, client)


def client(identity: Path, server: bytes) -> ssl.SSLContext:
    """For the end that connects, with the server name `NAME`; `server` is the only certificate (DER) that it accepts."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity, server)


def _context(protocol: int, identity: Path, trusted: str | bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_DATES
    context.load_cert_chain(identity)
    context.load_verify_locations(cadata=trusted)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # every connection proves anew who it is
    return context


def expect_life(connection: socket.socket) -> None:
    """Have the kernel end a TCP connection whose peer is gone without a word."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _LOST // 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST * 1000)
