"""The bridge of a node: carries gateways' streams to the replicas' Unix sockets there, under TLS.

`keeper` starts it as a child of the node's actor, since bytes should not wait for Ray and Ray's process should not read a
stranger's. It gets a socket that listens, the folder of the replicas and its own identity; on stdin the certificate of the
gateways (PEM, as a JSON string), a line each time it changes; it ends with its stdin. `tls` says who is let in; `serving.dial`
is the other end. It knows nothing of frames: after the handshake a client names a replica, is told that it is reached, and from
then on bytes go both ways, no faster than either side takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import stat
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

from modelyard import telemetry
from modelyard.jobs.ray import tls

_log = telemetry.log(__name__)
# Seconds from a connection to a reached replica, and connections that may be on that way at once: then the eldest gives way.
_PATIENCE, _ENTERING = 5.0, 64
# Bytes that wait in each direction before the side that sends is paused.
_HIGH = 256 << 10
_TOKEN = re.compile(rb"[a-z0-9-]{1,40}\n")
_LONGEST = 41
# Seconds to wait where no connection can be taken: there are too many; and between two lines about connections refused.
_PAUSE, _SAID = 0.1, 10.0


class End(asyncio.Protocol):
    """One end of a stream. Until it has a `peer` it keeps one line, and reads no further."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.line: asyncio.Future[bytes] = loop.create_future()
        self.peer: End | None = None
        self.transport: asyncio.Transport
        self.gone = False
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.transport.write(data)
            return
        self._read += data
        if b"\n" in self._read or len(self._read) >= _LONGEST:
            self.transport.pause_reading()
            if not self.line.done():
                self.line.set_result(self._read)

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.open:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.open:
            self.peer.transport.resume_reading()

    @property
    def open(self) -> bool:
        return not self.gone and not self.transport.is_closing()

    def drop(self) -> None:
        """Close at once, if there is something to close."""
        if hasattr(self, "transport"):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self.peer is not None:
            self.peer.transport.close()
        if not self.line.done():
            self.line.set_exception(exc or ConnectionResetError("the peer closed"))
            self.line.exception()  # whoever waited for it may have given up


class Bridge:
    """Takes connections from `listener` for the replicas in `folder`, once `trust` said from whom."""

    def __init__(self, listener: socket.socket, folder: Path, identity: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._folder, self._identity = listener, folder, identity
        self._context: ssl.SSLContext | None = None
        self._entering: dict[asyncio.Task[None], socket.socket] = {}
        self._refused, self._said = 0, -_SAID

    def trust(self, certificate: str) -> None:
        """Let in who has the key of this certificate (PEM), and no longer who has that of another. Streams that are there
        go on."""
        self._context = tls.server(self._identity, certificate)

    async def run(self) -> None:
        """Take connections for good."""
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:
                _log.warning("no connection can be taken", error=str(error))
                await asyncio.sleep(_PAUSE)
                continue
            if self._context is None:
                connection.close()
                continue
            task = self._loop.create_task(self._enter(connection, self._context))
            self._entering[task] = connection
            task.add_done_callback(self._entered)
            if len(self._entering) > _ENTERING:
                eldest = next(iter(self._entering))
                _shut(self._entering[eldest])
                await asyncio.wait([eldest])

    def _entered(self, task: asyncio.Task[None]) -> None:
        del self._entering[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection failed", error=repr(error)[:300])

    async def _enter(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """The way of one connection to its replica; what goes wrong on it closes it, and nobody is told why."""
        far, near = End(self._loop), End(self._loop)
        try:
            async with asyncio.timeout(_PATIENCE):
                tls.expect_life(connection)
                await self._loop.connect_accepted_socket(
                    lambda: far, connection, ssl=context, ssl_handshake_timeout=_PATIENCE, ssl_shutdown_timeout=_PATIENCE
                )
                await self._reach(await far.line, near)
            if far.gone or near.gone:
                raise ConnectionResetError("one side left before the other came")
            far.peer, near.peer = near, far
            far.transport.write(tls.READY + f"{time.time():.3f}\n".encode())
            far.transport.resume_reading()
        except (OSError, ValueError) as error:
            self._refuse(error)
        finally:
            if far.peer is None:
                for end in (far, near):
                    end.drop()
                _shut(connection)  # before the handshake there is no transport yet

    def _refuse(self, error: Exception) -> None:
        """Say so, but not as often as strangers like."""
        self._refused += 1
        if self._loop.time() - self._said >= _SAID:
            _log.warning("connections were refused", number=self._refused, last=str(error)[:200])
            self._said, self._refused = self._loop.time(), 0

    async def _reach(self, line: bytes, near: End) -> None:
        """Connect `near` to the replica that was named. Raises `ValueError` where none was, `OSError` where none is there."""
        if _TOKEN.fullmatch(line) is None:
            raise ValueError("what was said first is no token of a replica")
        # A replica can put anything in its folder: a link there must not lead to another's socket.
        found = os.open(self._folder / line[:-1].decode() / "replica.sock", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(found).st_mode):
                raise ValueError("what is in the replica's folder is no socket")
            await self._loop.create_unix_connection(lambda: near, f"/proc/self/fd/{found}")
        finally:
            os.close(found)


def _shut(connection: socket.socket) -> None:
    """End a connection, whatever it is about."""
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


async def serve(listener: socket.socket, folder: Path, identity: Path) -> None:
    """Run a bridge until stdin ends."""
    bridge = Bridge(listener, folder, identity)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    running = loop.create_task(bridge.run())
    while line := await reader.readline():
        bridge.trust(json.loads(line))
    running.cancel()


def main() -> None:
    """`python -m modelyard.jobs.ray.bridge DESCRIPTOR FOLDER IDENTITY`."""
    telemetry.configure("bridge")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, meant for who started us all
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    uvloop.run(serve(listener, Path(sys.argv[2]), Path(sys.argv[3])))


if __name__ == "__main__":
    main()
