"""The bridge to another machine's replicas, as a process: who is let in, what is carried, and what strangers cannot do."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from modelyard.errors import Damaged, Invalid
from modelyard.jobs.ray import bridge, tls
from modelyard.jobs.ray.keeper import Keeper
from modelyard.serving.dial import connect, dial

TOKEN = "r-000000000001"
BODY = os.urandom(10 << 20)


class Stream(asyncio.Protocol):
    """A gateway's end: what arrived, and whether it is over."""

    def __init__(self) -> None:
        self.got, self.over = bytearray(), asyncio.Event()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


class Scene:
    """A bridge with one replica behind it, which echoes; `seen` counts its connections."""

    def __init__(self, folder: Path) -> None:
        self.replicas, self.identity = folder / "replicas", folder / "gateway.pem"
        (self.replicas / TOKEN).mkdir(parents=True)
        self.socket = self.replicas / TOKEN / "replica.sock"
        self.seen = self.busy = 0
        self.streams: list[Stream] = []
        self.keeper = Keeper("127.0.0.1", self.replicas, folder / "node.pem")
        self.keeper.trust(tls.identity(self.identity))
        self.keeper.look()
        self.address = self.keeper.address(TOKEN)
        self.port = tls.parse(self.address).port

    @property
    def pid(self) -> int:
        assert self.keeper._process is not None
        return self.keeper._process.pid

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen += 1
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

    @contextlib.asynccontextmanager
    async def replica(self, serve: Callable[..., Awaitable[None]] | None = None) -> AsyncIterator[None]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.busy += 1
            with contextlib.suppress(OSError):
                await (serve or self.echo)(reader, writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.busy -= 1

        server = await asyncio.start_unix_server(handle, self.socket)
        try:
            yield
        finally:
            server.close()
            for stream in self.streams:
                stream.transport.abort()
                await stream.over.wait()
            await until(lambda: not self.busy)
            await asyncio.sleep(0.05)  # until the loop has let go of what was closed

    async def reach(self, address: str = "", identity: Path | None = None) -> Stream:
        stream = Stream()
        await dial(asyncio.get_running_loop(), stream, address or self.address, identity or self.identity)
        self.streams.append(stream)
        return stream

    async def echoes(self, data: bytes = b"hello") -> None:
        stream = await self.reach()
        stream.transport.write(data)
        await until(lambda: len(stream.got) >= len(data))
        assert stream.got == data
        stream.transport.close()

    def strangers(self, count: int) -> list[socket.socket]:
        return [socket.create_connection(("127.0.0.1", self.port)) for _ in range(count)]

    def memory(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


async def until(condition: Callable[[], Any], patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one, whoever runs the tests: the path of a socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bridge-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.keeper.close()


@pytest.fixture(params=[asyncio.run, uvloop.run])
def run(request: Any) -> Callable[[Coroutine[Any, Any, None]], None]:
    found: Callable[[Coroutine[Any, Any, None]], None] = request.param
    return found


def refused(scene: Scene, context: ssl.SSLContext | None, said: bytes) -> bytes:
    """What a client gets that says something, under TLS or without."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", scene.port), timeout=20) as plain:
        connection = context.wrap_socket(plain, server_hostname=tls.NAME) if context else plain
        with connection:
            connection.sendall(said)
            return connection.recv(100)
    return b""


def test_bytes_go_both_ways_and_a_large_body_arrives_whole(scene: Scene, run: Any) -> None:
    async def all_of_it() -> None:
        async with scene.replica():
            await scene.echoes()
            await scene.echoes(BODY)
            await asyncio.gather(*(scene.echoes(BODY[: n << 10]) for n in range(1, 40)))

    run(all_of_it())


def test_the_clock_of_the_node_is_told_and_one_who_waits_gets_a_socket(scene: Scene) -> None:
    async def all_of_it() -> None:
        async with scene.replica():
            stream = Stream()
            ahead = await dial(asyncio.get_running_loop(), stream, scene.address, scene.identity)
            scene.streams.append(stream)
            assert 0 < abs(ahead) < 1
            connection = await asyncio.to_thread(connect, scene.address, scene.identity, 5.0)
            with connection:
                connection.sendall(b"hello")
                assert await asyncio.to_thread(connection.recv, 100) == b"hello"

    asyncio.run(all_of_it())


def test_only_the_gateway_is_let_in(scene: Scene, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    tls.identity(other)
    der = tls.parse(scene.address).certificate
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(cadata=der)
    nodes = tls.client(tmp_path / "node.pem", der)  # a node's own key opens no node

    async def all_of_it() -> None:
        async with scene.replica():
            for context in (None, bare, tls.client(other, der), nodes):
                for said in (f"{TOKEN}\n".encode(), BODY[: 1 << 16], b"GET / HTTP/1.1\r\n\r\n"):
                    got = await asyncio.to_thread(refused, scene, context, said)
                    assert tls.READY not in got
            with pytest.raises(OSError):
                await scene.reach(identity=other)
            assert scene.seen == 0
            await scene.echoes()

    asyncio.run(all_of_it())


def test_a_bridge_that_is_not_the_known_one_is_told_nothing(scene: Scene, tmp_path: Path) -> None:
    false = ssl.PEM_cert_to_DER_cert(tls.identity(tmp_path / "false.pem"))
    address = str(tls.parse(scene.address)._replace(certificate=false))

    async def all_of_it() -> None:
        async with scene.replica():
            with pytest.raises(OSError, match="certificate verify failed"):
                await scene.reach(address)
            with pytest.raises(OSError, match="certificate verify failed"):
                await asyncio.to_thread(connect, address, scene.identity, 5.0)
            assert scene.seen == 0

    asyncio.run(all_of_it())


def test_who_listens_on_the_way_reads_nothing(scene: Scene) -> None:
    seen = bytearray()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            seen.extend(data)
            writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", scene.port)
        await asyncio.gather(copy(reader, to), copy(there, writer))

    async def all_of_it() -> None:
        async with scene.replica(), await asyncio.start_server(listen, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            scene.address = str(tls.parse(scene.address)._replace(port=port))
            await scene.echoes(b"nobody's business " * 1000)

    asyncio.run(all_of_it())
    assert len(seen) > 36_000
    assert b"nobody" not in seen
    assert TOKEN.encode() not in seen


@pytest.mark.parametrize("said", ["r-999999999999", "..", "../replicas/r-000000000001", "R", "", "r" * 5000, "r-1\0"])
def test_what_names_no_replica_ends_the_connection(scene: Scene, said: str) -> None:
    place = tls.parse(scene.address)

    async def all_of_it() -> None:
        async with scene.replica():
            context = tls.client(scene.identity, place.certificate)
            assert await asyncio.to_thread(refused, scene, context, f"{said}\n".encode()) == b""
            assert scene.seen == 0

    asyncio.run(all_of_it())


def test_a_link_in_a_replicas_folder_leads_nowhere(scene: Scene) -> None:
    async def all_of_it() -> None:
        async with scene.replica():
            (scene.replicas / "r-2").mkdir()
            (scene.replicas / "r-2" / "replica.sock").symlink_to(scene.socket)
            with pytest.raises(OSError):
                await scene.reach(scene.keeper.address("r-2"))
            assert scene.seen == 0

    asyncio.run(all_of_it())


def test_strangers_that_say_nothing_keep_nobody_out_and_are_put_out(scene: Scene) -> None:
    async def all_of_it() -> None:
        async with scene.replica():
            await scene.echoes()
            before, descriptors = scene.memory(), scene.descriptors()
            strangers = scene.strangers(300)
            for stranger in strangers[::3]:
                stranger.sendall(b"\x16\x03\x01\x40\x00" + bytes(1000))  # a handshake that stays unfinished
            for _ in range(5):
                began = time.monotonic()
                await scene.echoes(BODY[:1000])
                assert time.monotonic() - began < 2.0
            assert scene.descriptors() <= descriptors + bridge._ENTERING + 10
            assert scene.memory() - before < 64 << 20
            await until(lambda: scene.descriptors() <= descriptors, 2 * bridge._PATIENCE)
            for stranger in strangers:
                stranger.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    while stranger.recv(100):
                        pass
                stranger.close()

    asyncio.run(all_of_it())


def test_who_is_let_in_and_asks_for_nothing_is_put_out(scene: Scene) -> None:
    context = tls.client(scene.identity, tls.parse(scene.address).certificate)
    plain = socket.create_connection(("127.0.0.1", scene.port), timeout=3 * bridge._PATIENCE)
    with context.wrap_socket(plain, server_hostname=tls.NAME) as connection:
        began = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - began < 2 * bridge._PATIENCE + 2


def test_a_client_that_does_not_read_stops_the_replica_and_nobody_else(scene: Scene) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if await reader.read(1) != b"p":
            return await scene.echo(reader, writer)
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async def all_of_it() -> None:
        async with scene.replica(pour):
            stream = await scene.reach()
            before = scene.memory()
            stream.transport.pause_reading()
            stream.transport.write(b"p")
            last = -1
            while sent != last:
                last = sent
                await asyncio.sleep(0.3)
            assert 0 < sent < 64 << 20
            assert scene.memory() - before < 16 << 20
            other = await scene.reach()
            other.transport.write(b"xhello")
            await until(lambda: other.got == b"hello")
            stream.transport.resume_reading()
            await until(lambda: sent > last + (64 << 20))
            stream.transport.abort()
            other.transport.close()

    uvloop.run(all_of_it())


def test_the_end_of_either_side_is_the_others(scene: Scene) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(5))

    async def all_of_it() -> None:
        async with scene.replica(hang_up):
            stream = await scene.reach()
            stream.transport.write(b"hello")
            await asyncio.wait_for(stream.over.wait(), 10)
            assert stream.got == b"hello"
        with pytest.raises(OSError):
            await scene.reach()

    asyncio.run(all_of_it())


def test_a_bridge_that_ended_is_started_again_where_it_was(scene: Scene) -> None:
    async def all_of_it() -> None:
        async with scene.replica():
            stream = await scene.reach()
            before = scene.pid
            os.kill(before, signal.SIGKILL)
            await asyncio.wait_for(stream.over.wait(), 10)
            while scene.pid == before:
                scene.keeper.look()
                await asyncio.sleep(0.05)
            await scene.echoes()

    asyncio.run(all_of_it())


def test_another_certificate_takes_the_place_of_the_first(scene: Scene, tmp_path: Path) -> None:
    async def all_of_it() -> None:
        async with scene.replica():
            first = await scene.reach()
            newer = tmp_path / "newer.pem"
            scene.keeper.trust(tls.identity(newer))
            await asyncio.sleep(0.5)
            with pytest.raises(OSError):
                await scene.reach()
            first.transport.write(b"hello")
            await until(lambda: first.got == b"hello")
            scene.identity = newer
            await scene.echoes()

    asyncio.run(all_of_it())


def test_a_bridge_ends_with_whoever_keeps_it(scene: Scene) -> None:
    process = scene.keeper._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def test_addresses_and_identities_are_what_they_say(tmp_path: Path) -> None:
    for host in ("10.0.0.1", "fe80::1"):
        place = tls.Address(host, 1234, TOKEN, b"\0\xff" * 9)
        assert tls.parse(str(place)) == place
    for wrong in ("", "/path", "tls://a/b#c", "tls://a:1/../b#QQ==", "tls://a:1/b"):
        with pytest.raises(Invalid):
            tls.parse(wrong)
    path = tmp_path / "one.pem"
    assert tls.identity(path) == tls.identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("nothing")
    with pytest.raises(Damaged):
        tls.identity(path)
