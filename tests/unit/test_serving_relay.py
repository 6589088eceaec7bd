"""The relay passes bytes both ways as they came, and nothing about connections or senders that is not ours to say."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from modelyard.serving.relay import Relay


class Control:
    """Answers on a Unix socket with bytes given by the test; keeps what it was sent."""

    def __init__(self, path, answer):
        self.path, self.answer, self.got, self.closed = path, answer, b"", asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.got += head
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            while not self.got.endswith(b"0\r\n\r\n"):
                self.got += await reader.read(65536)
        elif b"content-length: " in lower:
            self.got += await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await self.answer(reader, writer)
        writer.close()
        self.closed.set()


def said(data):
    async def answer(_, writer):
        writer.write(data)
        await writer.drain()

    return answer


class Client:
    """One request through the relay as ASGI would make it."""

    def __init__(self, path, method="GET", headers=(), bodies=(), query=b""):
        self.scope = {
            "type": "http",
            "method": method,
            "raw_path": path,
            "query_string": query,
            "scheme": "http",
            "client": ("9.9.9.9", 1234),
            "headers": [(b"host", b"yard:8080"), *headers],
        }
        self.inbox = asyncio.Queue()
        for index, body in enumerate(bodies or [b""]):
            more = index + 1 < len(bodies)
            self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})
        self.sent = []
        self.arrived = asyncio.Event()

    async def send(self, message):
        self.sent.append(message)
        self.arrived.set()

    def leave(self):
        self.inbox.put_nowait({"type": "http.disconnect"})

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def through(tmp_path, answer, client, before=None):
    """Send `client`'s request through a relay to a control that gives `answer`; returns what control got."""

    async def run():
        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", answer) as control:
            asked = client()
            await asyncio.wait_for(relay(asked.scope, asked.inbox.get, asked.send), 10)
            await relay.close()
            return asked, control.got

    return asyncio.run(run())


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_a_request_goes_as_it_came(tmp_path):
    asked, got = through(
        tmp_path, said(OK), lambda: Client(b"/api/%2e%2e/a%20b", headers=[(b"x-a", b"1"), (b"x-a", b"2")], query=b"q=%26&r")
    )
    assert got.startswith(b"GET /api/%2e%2e/a%20b?q=%26&r HTTP/1.1\r\n")
    assert got.lower().count(b"\r\nhost: yard:8080\r\n") == 1
    assert b"x-a: 1\r\n" in got
    assert b"x-a: 2\r\n" in got
    assert (asked.status, asked.body) == (200, b"ok")


def test_headers_of_the_connection_and_tales_of_the_sender_stay(tmp_path):
    headers = [
        (b"connection", b"close, X-Secret"),
        (b"x-secret", b"1"),
        (b"keep-alive", b"5"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"proxy-authorization", b"x"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-forwarded-host", b"evil"),
        (b"forwarded", b"for=1.2.3.4"),
        (b"authorization", b"Bearer k"),
    ]
    _, got = through(tmp_path, said(OK), lambda: Client(b"/api", headers=headers))
    text = got.lower()
    for gone in (b"x-secret", b"keep-alive: 5", b"te:", b"upgrade", b"proxy-auth", b"1.2.3.4", b"evil", b"forwarded: for"):
        assert gone not in text
    assert b"authorization: bearer k" in text
    assert b"x-forwarded-for: 9.9.9.9\r\n" in text
    assert b"x-forwarded-proto: http\r\n" in text


@pytest.mark.parametrize("sized", [True, False])
def test_bodies_stream_in(tmp_path, sized):
    pieces = [b"a" * 60_000, b"b" * 60_000, b"c"]
    header = (b"content-length", b"120001") if sized else (b"transfer-encoding", b"chunked")
    asked, got = through(tmp_path, said(OK), lambda: Client(b"/api", "PUT", [header], pieces))
    assert got.count(b"a") >= 60_000
    assert got.count(b"b") >= 60_000
    assert (b"content-length: 120001" in got.lower()) == sized
    assert (b"transfer-encoding: chunked" in got.lower()) != sized
    assert asked.status == 200


def test_a_get_has_no_body(tmp_path):
    _, got = through(tmp_path, said(OK), lambda: Client(b"/api"))
    assert b"content-length" not in got.lower()
    assert b"transfer-encoding" not in got.lower()


def test_an_answer_streams_out_piece_by_piece(tmp_path):
    async def run():
        go = asyncio.Event()

        async def answer(_, writer):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-b: 1\r\n\r\n3\r\none\r\n")
            await go.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            await writer.drain()

        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", answer):
            asked = Client(b"/api/jobs/1/events")
            running = asyncio.ensure_future(relay(asked.scope, asked.inbox.get, asked.send))
            for _ in range(2000):
                if asked.body == b"one":
                    break
                await asyncio.sleep(0.001)
            assert asked.body == b"one"
            assert asked.headers == {b"x-b": b"1"}
            go.set()
            await asyncio.wait_for(running, 10)
            assert asked.body == b"onetwo"
            assert asked.sent[-1].get("more_body", False) is False
            await relay.close()

    asyncio.run(run())


def test_a_client_that_leaves_ends_the_answer(tmp_path):
    async def run():
        async def answer(reader, writer):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            await reader.read(1)  # until the relay closes

        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", answer) as control:
            asked = Client(b"/api/jobs/1/events")
            running = asyncio.ensure_future(relay(asked.scope, asked.inbox.get, asked.send))
            await asyncio.wait_for(asked.arrived.wait(), 10)
            asked.leave()
            await asyncio.wait_for(running, 10)
            await asyncio.wait_for(control.closed.wait(), 10)
            await relay.close()

    asyncio.run(run())


def test_a_client_that_leaves_while_sending(tmp_path):
    async def run():
        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", said(OK)):
            asked = Client(b"/api", "PUT", [(b"content-length", b"100")], [b"half", b""])
            asked.inbox = asyncio.Queue()
            asked.inbox.put_nowait({"type": "http.request", "body": b"half", "more_body": True})
            asked.leave()
            await asyncio.wait_for(relay(asked.scope, asked.inbox.get, asked.send), 10)
            assert not asked.sent
            await relay.close()

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 60_000])
def test_no_connection_to_control_is_opened_before_a_small_body_is_whole(tmp_path, size):
    async def run():
        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", said(OK)) as control:
            opened = asyncio.Event()
            serve = control._serve
            control.server.close()

            async def watched(reader, writer):
                opened.set()
                await serve(reader, writer)

            control.server = await asyncio.start_unix_server(watched, str(control.path))
            asked = Client(b"/api", "POST", [(b"content-length", b"%d" % (size + 1))], [b"x" * size, b""])
            asked.inbox = asyncio.Queue()
            asked.inbox.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": True})
            running = asyncio.ensure_future(relay(asked.scope, asked.inbox.get, asked.send))
            await asyncio.sleep(0.05)
            assert not opened.is_set()
            asked.inbox.put_nowait({"type": "http.request", "body": b"y", "more_body": False})
            await asyncio.wait_for(running, 10)
            assert asked.status == 200
            assert control.got.endswith(b"x" * size + b"y")
            await relay.close()

    asyncio.run(run())


def test_long_bodies_that_stall_leave_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr("modelyard.serving.relay._LIMITS", httpx.Limits(max_connections=2))

    async def run():
        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", said(OK)):
            stalled = []
            for _ in range(4):
                long = Client(b"/api/blobs", "PUT", [(b"content-length", b"90000")], [b"x" * 80_000, b""])
                long.inbox = asyncio.Queue()
                long.inbox.put_nowait({"type": "http.request", "body": b"x" * 80_000, "more_body": True})
                stalled.append(asyncio.ensure_future(relay(long.scope, long.inbox.get, long.send)))
            await asyncio.sleep(0.05)
            asked = Client(b"/api")
            await asyncio.wait_for(relay(asked.scope, asked.inbox.get, asked.send), 2)
            assert asked.status == 200
            for task in stalled:
                task.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)
            await relay.close()

    asyncio.run(run())


def test_control_is_gone(tmp_path):
    async def run():
        relay = Relay(tmp_path / "control.sock")
        asked = Client(b"/api")
        await asyncio.wait_for(relay(asked.scope, asked.inbox.get, asked.send), 10)
        assert asked.status == 503
        assert asked.headers[b"retry-after"] == b"1"
        assert json.loads(asked.body)["error"]["code"] == "unavailable"
        assert str(tmp_path) not in asked.body.decode()
        await relay.close()

    asyncio.run(run())


def test_control_dies_before_it_answers(tmp_path):
    asked, _ = through(tmp_path, said(b""), lambda: Client(b"/api"))
    assert asked.status == 503


def test_control_dies_while_it_answers(tmp_path):
    """Nothing says that the answer is whole: the server cuts the connection. It is no accident of the relay's."""
    cut = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
    asked, _ = through(tmp_path, said(cut), lambda: Client(b"/api/jobs/1/events"))
    assert (asked.status, asked.body) == (200, b"one")
    assert asked.sent[-1]["more_body"]


def test_errors_and_statuses_pass(tmp_path):
    answer = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    asked, _ = through(tmp_path, said(answer), lambda: Client(b"/api"))
    assert asked.status == 404
    assert asked.headers == {b"content-type": b"application/json", b"content-length": b"2"}


def test_a_websocket_is_refused(tmp_path):
    async def run():
        sent = []
        relay = Relay(tmp_path / "control.sock")

        async def send(message):
            sent.append(message)

        await relay({"type": "websocket"}, None, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]
        await relay.close()

    asyncio.run(run())


def test_it_knows_whether_control_answers(tmp_path):
    async def run():
        path = tmp_path / "control.sock"
        relay = Relay(path)
        watching = asyncio.create_task(relay.watch())

        async def tells(answers):
            for _ in range(500):
                if relay.answers is answers:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(f"never {answers}")

        await asyncio.sleep(0.1)
        seen = [relay.answers, relay.age >= 0.1]
        began = time.monotonic()
        async with Control(path, said(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")) as control:
            await control.closed.wait()
            await tells(True)
            seen.append(relay.age <= time.monotonic() - began)
        await tells(False)
        watching.cancel()
        await relay.close()
        return seen, control.got

    seen, got = asyncio.run(run())
    assert seen == [False, True, True]
    assert got.startswith(b"GET /healthz HTTP/1.1\r\n")


def test_controls_metrics_are_asked_for_with_the_callers_credentials(tmp_path):
    async def run(answer):
        relay = Relay(tmp_path / "control.sock")
        async with Control(tmp_path / "control.sock", answer) as control:
            began = time.monotonic()
            told = await relay.metrics(((b"authorization", b"Bearer my_key"),))
            seconds = time.monotonic() - began
            await relay.close()
            await asyncio.wait_for(control.closed.wait(), 10)
            return told, control.got, seconds

    async def silent(reader, _):
        await reader.read()

    head = b"HTTP/1.1 %d X\r\nContent-Length: 4\r\n\r\nup 1"
    told, got, _ = asyncio.run(run(said(head % 200)))
    assert told == b"up 1"
    assert got.startswith(b"GET /metrics HTTP/1.1\r\n")
    assert b"Authorization: Bearer my_key\r\n".lower() in got.lower()
    assert asyncio.run(run(said(head % 401)))[0] is None
    told, _, seconds = asyncio.run(run(silent))
    assert told is None
    assert seconds < 5


def test_without_control_there_are_none_of_its_metrics(tmp_path):
    async def run():
        relay = Relay(tmp_path / "control.sock")
        told = await relay.metrics(())
        await relay.close()
        return told

    assert asyncio.run(run()) is None
