"""How a replica is reached: by its Unix socket on this machine, over its node's bridge on another.

`router` connects its channels here, `probe` its questions. `address` is a path, or what `jobs.ray.tls.Address` writes;
`identity` the file with the gateways' key, which control makes where there is a cluster.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path

from modelyard.errors import Invalid
from modelyard.jobs.ray import tls

PATIENCE = 5.0
_LONGEST = 40  # bytes that a bridge answers at most before the replica speaks


class _Answer(asyncio.Protocol):
    """What a bridge says before it is out of the way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.line: asyncio.Future[bytes] = loop.create_future()
        self.gone = False
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self.line.done() and (self._read.endswith(b"\n") or len(self._read) > _LONGEST):
            self.line.set_result(self._read)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if not self.line.done():
            self.line.set_exception(exc or ConnectionResetError("the bridge closed: it does not reach the replica"))
            self.line.exception()  # whoever waited for it may have given up


async def dial(loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, address: str, identity: Path | None) -> float:
    """Connect `protocol` to a replica. Returns how many seconds its clock is ahead of ours. Raises `OSError` where it cannot
    be reached, and where the bridge is not the one that is known or does not let us in."""
    if not address.startswith(tls.SCHEME):
        await loop.create_unix_connection(lambda: protocol, address)
        return 0.0
    place = _place(address)
    answer = _Answer(loop)
    transport: asyncio.Transport | None = None
    connection = _socket(place)
    connection.setblocking(False)
    try:
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(connection, (place.host, place.port))
            transport, _ = await loop.create_connection(
                lambda: answer, sock=connection, ssl=_context(identity, place), server_hostname=tls.NAME
            )
            asked = time.time()
            transport.write(f"{place.token}\n".encode())
            ahead = _ahead(await answer.line, asked)
        if answer.gone:
            raise ConnectionResetError("the bridge closed")
    except BaseException:
        connection.close() if transport is None else transport.abort()
        raise
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return ahead


def machine_of(address: str) -> str:
    """The host that an address is on; '' for this machine."""
    try:
        return tls.parse(address).host if address.startswith(tls.SCHEME) else ""
    except Invalid:
        return address  # nobody is reached there


def connect(address: str, identity: Path | None, patience: float) -> socket.socket:
    """As `dial`, for who waits: a socket that speaks to the replica, with this timeout. Raises `OSError`."""
    if not address.startswith(tls.SCHEME):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(patience)
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection
    place = _place(address)
    connection = _socket(place)
    try:
        connection.settimeout(patience)
        connection.connect((place.host, place.port))
        connection = _context(identity, place).wrap_socket(connection, server_hostname=tls.NAME)
        connection.sendall(f"{place.token}\n".encode())
        read = b""
        while not read.endswith(b"\n") and len(read) <= _LONGEST:
            if not (data := connection.recv(1)):
                raise ConnectionResetError("the bridge closed: it does not reach the replica")
            read += data
        _ahead(read, time.time())
    except OSError:
        connection.close()
        raise
    return connection


def _place(address: str) -> tls.Address:
    try:
        return tls.parse(address)
    except Invalid as error:
        raise OSError(error.message) from error


def _socket(place: tls.Address) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET, socket.SOCK_STREAM)
    tls.expect_life(connection)
    return connection


def _context(identity: Path | None, place: tls.Address) -> ssl.SSLContext:
    if identity is None:
        raise OSError("No key is known for the way to other machines.")
    return tls.client(identity, place.certificate)


def _ahead(answer: bytes, asked: float) -> float:
    """How much the clock there is ahead of the one here, half of the time between being counted for the way."""
    try:
        there = float(answer.removeprefix(tls.READY)) if answer.startswith(tls.READY) else None
    except ValueError:
        there = None
    if there is None:
        raise OSError(f"The bridge said {answer[:40]!r} where {tls.READY!r} and its clock were expected.")
    return there - (asked + time.time()) / 2
