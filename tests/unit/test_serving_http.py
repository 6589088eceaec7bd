"""The gateway's HTTP over a transport by hand: framing, order, bodies, refusals, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import FakeTransport
from serving_gateway_fakes import KEY, Bench, FakeFollower, record, route
from uvicorn.server import ServerState

from modelyard.serving import sleepers
from modelyard.serving.follower import State
from modelyard.serving.frames import PIECE, Fault, Usage, append
from modelyard.serving.http import MAX_HEAD, InferenceProtocol
from modelyard.serving.metrics import exposition
from modelyard.serving.turns import LINGER, MAX_PIPELINED
from modelyard.serving.types import DeploymentState
from modelyard.tenancy.quota import Quota

AUTH = f"Authorization: Bearer {KEY}\r\n"


async def app(scope, receive, send):
    """Says what it was asked; '/slow' waits for the test, '/early' begins its answer before."""
    if scope["path"] == "/early":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await scope["state"]["go"].wait()
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            scope["state"]["gone"].set()
            return
        body += message["body"]
        if not message["more_body"]:
            break
    text = b"%b %b %d" % (scope["method"].encode(), scope["raw_path"], len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


class Connection:
    """One connection to a gateway, with its bench."""

    def __init__(self, folder, **options):
        self.bench = Bench(folder, **options)
        self.router, self.gateway = self.bench.router, self.bench.gateway
        self.go, self.gone = asyncio.Event(), asyncio.Event()
        config = uvicorn.Config(app, http=InferenceProtocol, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        protocol = type("P", (InferenceProtocol,), {"gateway": self.gateway})
        state = {"go": self.go, "gone": self.gone}
        self.protocol = protocol(config, ServerState(), state, asyncio.get_running_loop())
        self.transport = FakeTransport(self.protocol)
        self.protocol.connection_made(self.transport)

    def feed(self, *data):
        for piece in data:
            self.protocol.data_received(piece if isinstance(piece, bytes) else piece.encode())

    async def settle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    def answers(self):
        """(status, headers, body) of everything written so far."""
        data, found = self.transport.take(), []
        while data:
            head, _, data = data.partition(b"\r\n\r\n")
            status = int(head.split(b" ")[1])
            headers = dict(line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:])
            size = int(headers.get("content-length", 0))
            found.append((status, headers, data[:size]))
            data = data[size:]
        return found

    def lose(self):
        self.transport.closed = True
        self.protocol.connection_lost(None)


def post(body=b"{}", path="/v2/models/digits/infer", auth=AUTH, more="", length=None):
    text = body if isinstance(body, bytes) else body.encode()
    size = len(text) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{auth}{more}Content-Length: {size}\r\n\r\n".encode() + text


def chunked(*pieces, more="", trailers=""):
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n{AUTH}{more}Transfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head.encode() + body + b"0\r\n" + trailers.encode() + b"\r\n"


def scene(**options):
    """Run an async test with a connection."""

    def wrap(test):
        def run(tmp_path):
            async def inner():
                await test(Connection(tmp_path, **options))

            asyncio.run(asyncio.wait_for(inner(), 20))

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return wrap


# Calls


@scene()
async def test_a_call_and_its_answer(c):
    c.feed(post(b'{"a":1}', more="X-Request-Id: mine\r\n"))
    [call] = c.router.sent
    assert call.frame.data == b'{"a":1}'
    assert (call.frame.project, call.frame.deployment, call.frame.version, call.frame.door) == ("team", "digits", "3", "oip")
    assert call.frame.head == {"x-request-id": "mine"}
    assert call.frame.grant is None
    assert not c.transport.written
    c.router.answer(call, b'{"y":2}', units=4)
    assert c.answers() == [
        (200, {"content-type": "application/json", "x-request-id": "mine", "content-length": "7"}, b'{"y":2}')
    ]
    assert c.bench.counted() == [(1, 1, 0, 4, 7, 7, 7)]
    assert not c.transport.closed


@scene()
async def test_the_count_is_made_before_the_answer_is_written(c):
    counted = []
    c.transport.write = lambda data: counted.append(c.bench.counted()[0].calls)
    c.feed(post())
    c.router.answer(c.router.sent[0])
    assert counted == [1]


@scene()
async def test_a_connection_is_kept(c):
    for number in range(3):
        c.feed(post(b"%d" % number))
        c.router.answer(c.router.sent[-1], b"%d" % number)
    assert [body for _, _, body in c.answers()] == [b"0", b"1", b"2"]


@scene()
async def test_a_trace_goes_with_its_call_and_is_not_made_up(c):
    traced = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    c.feed(post(), post(more=f"Traceparent: {traced}\r\n"), post())
    assert [call.frame.head.get("traceparent") for call in c.router.sent] == [None, traced, None]
    for call in c.router.sent:
        c.router.answer(call)
    assert not any("traceparent" in headers for _, headers, _ in c.answers())
    assert c.gateway.traces.taken() == []


def spans(c):
    return [line["resourceSpans"][0]["scopeSpans"][0]["spans"] for line in c.gateway.traces.taken()]


@scene()
async def test_a_sampled_trace_goes_on_in_a_span_of_each_call(c):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    more = f"Traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n"
    for number in range(3):  # the same head each time: none may be taken for another's
        c.feed(post(more=more))
        c.router.sent[number].times = (0.0, 0.0, 0.0, 0.0)
        c.router.answer(c.router.sent[number])
    c.feed(post(more=more, path="/v2/models/nosuch/infer"))
    answered = [(status, headers["traceparent"]) for status, headers, _ in c.answers()]
    assert [status for status, _ in answered] == [200, 200, 200, 404]
    assert [call.frame.head["traceparent"] for call in c.router.sent] == [header for _, header in answered[:3]]
    told = spans(c)
    assert [f"00-{trace}-{call['spanId']}-01" for call, *_ in told] == [header for _, header in answered]
    assert len({call["spanId"] for call, *_ in told}) == 4
    assert {call["parentSpanId"] for call, *_ in told} == {"00f067aa0ba902b7"}
    assert [len(call) for call in told] == [7, 7, 7, 2]


@scene(trace_sample=1.0)
async def test_a_trace_is_begun_where_that_is_asked_for(c):
    for number in range(3):
        c.feed(post())
        c.router.fail(c.router.sent[number], "overloaded")
    answered = [(status, headers["traceparent"]) for status, headers, _ in c.answers()]
    told = [call for call, *_ in spans(c)]
    assert answered == [(429, f"00-{call['traceId']}-{call['spanId']}-01") for call in told]
    assert {call["parentSpanId"] for call in told} == {""}
    assert len({call["traceId"] for call in told}) == 3


@scene()
async def test_headers_that_go_with_a_call_leave_room_in_its_frame(c):
    for name in ("Traceparent", "Inference-Header-Content-Length"):
        c.feed(post(b"x" * PIECE, more=f"{name}: {'1' * 50_000}\r\n"))
        append(bytearray(), c.router.sent.pop().frame)


@scene()
async def test_headers_given_ever_so_often_leave_room_in_the_frame(c):
    lines = "Traceparent: a\r\n" * 2000 + "Inference-Header-Content-Length: 2\r\n" * 700
    c.feed(post(b"x" * PIECE, more=lines))
    append(bytearray(), c.router.sent.pop().frame)
    c.feed(post(more=f"Inference-Header-Content-Length: {'0' * 300}1\r\nInference-Header-Content-Length: 2\r\n"))
    assert "," in c.router.sent.pop().frame.head["inference-header-content-length"]


@scene()
async def test_headers_of_a_replica_pass_and_cannot_end_their_line(c):
    c.feed(post(more="Inference-Header-Content-Length: 5\r\n"))
    assert c.router.sent[0].frame.head["inference-header-content-length"] == "5"
    head = {"content-type": "application/octet-stream", "x-evil": "a\r\nset-cookie: b"}
    c.router.answer(c.router.sent[0], b"xy", head)
    [(status, headers, body)] = c.answers()
    assert (status, headers["content-type"], body) == (200, "application/octet-stream", b"xy")
    assert "x-evil" not in headers
    assert "set-cookie" not in headers


@scene()
async def test_an_answer_in_several_parts(c):
    c.feed(post())
    [call] = c.router.sent
    for data in (b"a", b"b", b"c"):
        call.part(data, None)
    call.ended(Usage(3, 0), None)
    assert c.answers()[0][2] == b"abc"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_request", 400),
        ("overloaded", 429),
        ("unavailable", 503),
        ("timed_out", 504),
        ("internal", 500),
        ("?", 500),
    ],
)
def test_errors_of_a_replica(tmp_path, code, status):
    @scene()
    async def run(c):
        c.feed(post())
        c.router.fail(c.router.sent[0], code, "because")
        [(found, headers, body)] = c.answers()
        assert (found, json.loads(body)) == (status, {"error": "because"})
        assert headers.get("retry-after") == ("1" if status in (429, 503) else None)
        assert c.bench.counted()[0].errors == 1

    run(tmp_path)


@scene()
async def test_a_late_call_is_answered_once_and_what_it_used_is_added(c):
    c.feed(post(b"12345"))
    [call] = c.router.sent
    call.late(Fault("timed_out", "late"))
    assert c.answers()[0][0] == 504
    call.late(Fault("timed_out", "late"))
    call.ended(Usage(8, 9), None)
    assert c.answers() == []
    assert c.bench.counted() == [(2, 1, 1, 8, 9, 5, len(b'{"error":"late"}'))]


# Bodies


@settings(max_examples=40)
@given(st.binary(max_size=300), st.lists(st.integers(0, 700), max_size=6))
def test_any_pieces_give_the_same_body(tmp_path_factory, body, cuts):
    async def run():
        for wire in (post(body), chunked(*([body[:7], body[7:]] if len(body) > 7 else [body] if body else []))):
            c = Connection(tmp_path_factory.mktemp("c"))
            places = sorted({min(cut, len(wire)) for cut in cuts})
            c.feed(*(wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)))
            assert [bytes(call.frame.data) for call in c.router.sent] == [body]

    asyncio.run(run())


@scene(body_limit=1000)
async def test_a_length_beyond_the_limit_is_refused_before_the_body(c):
    c.feed(post(b"", length=1001))
    [(status, headers, body)] = c.answers()
    assert (status, headers["connection"]) == (413, "close")
    assert "larger than 1000 bytes" in json.loads(body)["error"]
    assert c.transport.eof


@scene(body_limit=200_000)
async def test_a_large_length_is_refused_at_once_and_its_body_dropped(c):
    c.feed(post(b"", length=10**12))
    assert c.answers()[0][0] == 413
    c.feed(b"x" * 100_000, post())
    assert c.answers() == []
    assert not c.router.sent
    assert not c.transport.closed


@scene(body_limit=1000)
async def test_chunks_beyond_the_limit_are_refused_as_soon_as_they_pass_it(c):
    whole = chunked(b"x" * 600, b"y" * 600, b"z" * 600)
    c.feed(whole[:1600])
    assert [status for status, _, _ in c.answers()] == [413]
    c.feed(whole[1600:], post())
    assert c.answers() == []
    assert not c.router.sent


@scene()
async def test_continue_is_said_when_the_head_is_good(c):
    c.feed(post(b"", length=5, more="Expect: 100-continue\r\n"))
    assert c.transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    c.feed(b"12345")
    assert c.router.sent[0].frame.data == b"12345"


@scene()
async def test_continue_is_not_said_to_the_refused(c):
    c.feed(post(b"", length=5, more="Expect: 100-continue\r\n", auth=""))
    [(status, headers, _)] = c.answers()
    assert (status, headers["connection"]) == (401, "close")


@scene()
async def test_a_refused_small_body_keeps_the_connection(c):
    c.feed(post(b"12345", auth=""), post())
    c.router.answer(c.router.sent[0])
    assert [status for status, _, _ in c.answers()] == [401, 200]


@scene()
async def test_a_refused_large_body_ends_the_connection_softly(c):
    c.feed(post(b"x", auth="", length=1_000_000))
    assert [status for status, _, _ in c.answers()] == [401]
    assert c.transport.eof
    assert not c.transport.closed


@scene()
async def test_codings_are_told_to_the_replica_and_the_body_goes_as_it_came(c):
    told = {"content-encoding": "gzip", "body-limit": "100000000", "gzip-from": "1024"}
    for body in (b"\x1f\x8bnot", b"\x1f\x8bone"):
        c.feed(post(body, more="X-Request-Id: r\r\nContent-Encoding: GZip\r\nAccept-Encoding: br, gzip\r\n"))
        assert c.router.sent[-1].frame.data == body
    assert [call.frame.head for call in c.router.sent] == [{"x-request-id": "r", **told}] * 2
    c.feed(post(more="X-Request-Id: r\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\nBody-Limit: 1\r\n"))
    assert c.router.sent[-1].frame.head == {"x-request-id": "r", "content-encoding": "gzip, gzip", "body-limit": "100000000"}
    c.feed(post(more="X-Request-Id: r\r\nContent-Encoding: identity\r\nAccept-Encoding: br\r\nGzip-From: 0\r\n"))
    assert c.router.sent[-1].frame.head == {"x-request-id": "r"}


@scene()
async def test_a_header_given_twice_is_both(c):
    c.feed(post(more="Inference-Header-Content-Length: 2\r\nInference-Header-Content-Length: 1\r\n"))
    assert c.router.sent[-1].frame.head["inference-header-content-length"] == "2, 1"


@scene(body_limit=1_000_000)
async def test_bodies_share_a_bounded_room(c):
    c.gateway.reserve(7_950_000)
    c.feed(post(b"", length=200_000))
    assert [status for status, _, _ in c.answers()] == [503]


@scene(body_limit=1_000_000)
async def test_room_is_given_back(c):
    before = c.gateway._bodies
    c.feed(post(b"x" * 300_000))
    assert c.gateway._bodies < before
    c.router.answer(c.router.sent[0])
    assert c.gateway._bodies == before
    c.feed(chunked(*[b"y" * 10_000] * 20))
    assert c.gateway._bodies < before
    c.lose()
    c.router.answer(c.router.sent[1])
    assert c.gateway._bodies == before


# Answers


def piece(call, data=b"x" * PIECE, head=None):
    call.part(data, head)


@scene(body_limit=1_000_000)
async def test_an_answer_without_end_is_an_error_and_its_call_cancelled(c):
    before = c.gateway._bodies
    c.feed(post(b"12345"))
    [call] = c.router.sent
    for _ in range(100):
        piece(call)
    [(status, _, body)] = c.answers()
    assert status == 500
    assert "larger than 1000000 bytes" in json.loads(body)["error"]
    assert c.router.link.cancelled == [call.frame.id]
    assert c.gateway._bodies == before
    assert len(call._answer) <= PIECE
    call.ended(Usage(1, 2), None)
    assert c.answers() == []
    [counted] = c.bench.counted()
    assert (counted.calls, counted.errors, counted.units, counted.bytes_in) == (1, 1, 1, 5)


@scene(body_limit=1_000_000)
async def test_answers_take_of_the_same_room_as_bodies_unless_they_are_small(c):
    before = c.gateway._bodies
    c.feed(post())
    [call] = c.router.sent
    piece(call)
    assert c.gateway._bodies == before
    piece(call)
    assert c.gateway._bodies < before
    call.ended(Usage(), None)
    assert c.gateway._bodies == before
    c.gateway.reserve(7_990_000)
    c.feed(post())
    c.router.sent[1].part(b"x" * PIECE, None)
    c.router.sent[1].part(b"x" * PIECE, None)
    assert [status for status, _, _ in c.answers()] == [200, 503]
    assert c.router.link.cancelled == [2]


@scene(body_limit=1_000_000)
async def test_an_answer_takes_its_room_until_it_is_read(c):
    before = c.gateway._bodies
    c.transport.limit = 100_000
    c.feed(post(), post())
    for call in reversed(c.router.sent):  # the first keeps the second waiting
        for _ in range(4):
            piece(call)
        call.ended(Usage(), None)
        assert c.gateway._bodies < before
    c.transport.drained()
    assert c.gateway._bodies == before
    c.feed(post(), post())
    for call in reversed(c.router.sent[2:]):
        piece(call)
        piece(call)
    c.router.sent[2].ended(Usage(), None)
    c.lose()
    assert c.gateway._bodies == before


@scene(body_limit=1_000_000)
async def test_unread_streams_share_the_room_too(c):
    before = c.gateway._bodies
    c.transport.limit = 100_000
    c.feed(post())
    [call] = c.router.sent
    piece(call, head={"content-type": "text/event-stream"})
    assert c.gateway._bodies == before
    for _ in range(5):
        piece(call)
    assert c.gateway._bodies < before - 4 * PIECE
    c.transport.drained()
    assert c.gateway._bodies == before
    c.gateway.reserve(before - 1000)
    for _ in range(3):
        piece(call)
    assert c.transport.aborted
    c.lose()
    assert c.gateway._bodies == 1000


@scene()
async def test_a_replica_says_a_head_once_and_never_changes_its_mind(c):
    c.feed(post())
    [call] = c.router.sent
    piece(call, b"one", {"content-type": "text/event-stream"})
    piece(call, b"two", {"content-type": "text/event-stream"})
    piece(call, b"three", {"content-type": "application/json"})
    call.ended(Usage(), None)
    written = c.transport.take()
    assert written.count(b"HTTP/1.1") == 1
    assert written.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")
    c.feed(post())
    piece(c.router.sent[1], b"four")
    piece(c.router.sent[1], b"five", {"content-type": "text/event-stream"})
    c.router.sent[1].ended(Usage(), None)
    assert [(headers["content-type"], body) for _, headers, body in c.answers()] == [("application/json", b"fourfive")]


@scene()
async def test_what_a_late_call_was_asked_is_let_go(c):
    c.feed(post(b"x" * 100_000))
    [call] = c.router.sent
    call.late(Fault("timed_out", "late"))
    assert call.frame.data == b""
    assert c.bench.counted()[0].bytes_in == 100_000


@scene(body_limit=1_000_000)
async def test_what_an_answered_call_was_asked_does_not_wait_for_its_turn(c):
    before = c.gateway._bodies
    c.feed(post(), post(b"x" * 300_000), post(b"y" * 300_000))
    first, *others = c.router.sent
    c.router.answer(others[0])
    c.router.fail(others[1], "invalid_request")
    assert c.gateway._bodies == before
    assert [call.frame.data for call in others] == [b"", b""]
    c.router.answer(first)
    assert [status for status, _, _ in c.answers()] == [200, 200, 400]
    assert c.bench.counted()[0].bytes_in == 600_002


# Access


@pytest.mark.parametrize(
    ("wire", "status", "says"),
    [
        (post(auth=""), 401, "No API key was given"),
        (post(auth="Authorization: Bearer nonsense\r\n"), 401, "not valid"),
        (post(auth=AUTH + "Authorization: Bearer my_k2_x\r\n"), 401, "malformed"),
        (post(path="/v2/models/nosuch/infer"), 404, "No deployment 'nosuch'"),
        (post(path="/v2/models/%2e%2e/infer"), 404, "No deployment '..'"),
        (post(path="/v2/models/digits/versions/9/infer"), 404, "serves no version '9'"),
        (post(path="/v2/models/rivals/infer"), 404, "No deployment 'rivals'"),
    ],
)
def test_refusals(tmp_path, wire, status, says):
    @scene(routes=[route(), route("rivals", project="rival")])
    async def run(c):
        c.feed(wire)
        [(found, headers, body)] = c.answers()
        assert found == status
        assert says in json.loads(body)["error"]
        assert "rival'" not in json.loads(body)["error"].replace("'rivals'", "")
        assert re.fullmatch(r"[0-9a-f]{24}", headers["x-request-id"])
        assert ("www-authenticate" in headers) == (status == 401)
        assert not c.router.sent
        assert not c.bench.counted()

    run(tmp_path)


@scene(keys=[])
async def test_a_key_made_a_moment_ago_works_at_once(c):
    follower = FakeFollower(lambda: c.gateway.apply(State(2, [record()], [route()])))
    c.gateway.follow(follower)
    c.feed(post(b"one"), b"POST /v2/mod")
    assert not c.answers()
    assert not c.transport.reading
    follower.look()
    assert c.transport.reading
    assert c.router.sent[0].frame.data == b"one"
    c.feed(b"els/digits/infer HTTP/1.1\r\n" + AUTH.encode() + b"Content-Length: 1\r\n\r\n2")
    c.router.answer(c.router.sent[0], b"1")
    c.router.answer(c.router.sent[1], b"2")
    assert [body for _, _, body in c.answers()] == [b"1", b"2"]


@scene(keys=[], body_limit=10_000_000)
async def test_a_large_first_call_of_a_new_key(c):
    follower = FakeFollower(lambda: c.gateway.apply(State(2, [record()], [route()])))
    c.gateway.follow(follower)
    c.feed(post(b"x" * 100, length=1_000_000))
    follower.look()
    c.feed(b"x" * 999_900)
    assert len(c.router.sent[0].frame.data) == 1_000_000


@scene(keys=[])
async def test_a_key_that_is_still_unknown_after_a_look(c):
    follower = FakeFollower()
    c.gateway.follow(follower)
    c.feed(post(), post())
    assert len(follower.asked) == 2
    follower.look()
    assert [status for status, _, _ in c.answers()] == [401, 401]


@scene(keys=[])
async def test_a_key_is_not_called_wrong_without_a_look(c):
    follower = FakeFollower()
    c.gateway.follow(follower)
    c.feed(post())
    follower.look(seen=False)
    [(status, headers, body)] = c.answers()
    assert (status, headers["retry-after"]) == (503, "1")
    assert "cannot see the database" in json.loads(body)["error"]


@scene(keys=[])
async def test_a_client_that_leaves_during_the_look(c):
    follower = FakeFollower(lambda: c.gateway.apply(State(2, [record()], [route()])))
    c.gateway.follow(follower)
    c.feed(post())
    c.lose()
    follower.look()
    assert not c.router.sent


@scene(routes=[route(state=DeploymentState.asleep, endpoints=(), wakes=True)])
async def test_a_client_that_leaves_waits_for_nothing_that_sleeps(c):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        c.transport.extra["socket"] = ours
        c.feed(post())
        c.protocol.sweep(c.protocol.now(), 60)
        assert c.gateway.sleepers.any
        assert not c.transport.closed
        theirs.close()
        c.protocol.sweep(c.protocol.now(), 60)
        assert c.transport.aborted
        c.lose()
        assert not c.gateway.sleepers.any


def test_only_so_many_calls_wait_for_what_sleeps(tmp_path, monkeypatch):
    monkeypatch.setattr(sleepers, "MOST", 1)

    @scene(routes=[route(state=DeploymentState.asleep, endpoints=(), wakes=True)])
    async def run(c):
        c.gateway.sleepers.hold(route("other"), (), 5.0, lambda: None)
        c.feed(post())
        [(status, headers, _)] = c.answers()
        assert (status, headers["retry-after"]) == (503, "1")
        c.gateway.apply(State(2, [record()], [route()]))  # where 'other' is gone
        c.feed(post())
        c.router.answer(c.router.sent[0])
        assert [status for status, _, _ in c.answers()] == [200]

    run(tmp_path)


@scene()
async def test_without_any_key_nothing_is_looked_up(c):
    follower = FakeFollower()
    c.gateway.follow(follower)
    c.feed(post(auth=""))
    assert not follower.asked
    assert c.answers()[0][0] == 401


def upload(c, then):
    """A call whose body is whole only after `then`, when all replicas that it was admitted to have left the routes."""
    c.feed(post(b"one ", length=8))
    c.protocol.turns[0].admission.group.gone = True
    then()
    c.feed(b"more")


@scene(keys=[record(quota=Quota(0.001, 1))])
async def test_an_upload_goes_to_what_serves_when_it_is_whole_and_counts_once_against_a_quota(c):
    state = State(2, [record(quota=Quota(0.001, 1))], [route(version="4")])
    upload(c, lambda: c.gateway.apply(state))
    [call] = c.router.sent
    assert (call.frame.data, call.frame.version) == (b"one more", "4")
    c.router.answer(call)
    c.feed(post())
    assert [status for status, _, _ in c.answers()] == [200, 429]


@scene()
async def test_an_upload_to_a_deployment_that_fell_asleep_is_held(c):
    asleep = route(state=DeploymentState.asleep, endpoints=(), wakes=True)
    upload(c, lambda: c.gateway.apply(State(2, [record()], [asleep])))
    assert c.gateway.sleepers.any
    assert not c.transport.written
    c.gateway.apply(State(3, [record()], [route()]))
    await c.settle()
    assert [call.frame.data for call in c.router.sent] == [b"one more"]
    c.router.answer(c.router.sent[0])
    assert c.answers()[0][0] == 200


@scene()
async def test_an_upload_to_a_version_that_has_gone_is_taken_where_its_replica_still_answers(c):
    c.feed(post(b"one ", path="/v2/models/digits/versions/3/infer", length=8))
    group = c.protocol.turns[0].admission.group
    group.gone = group.up = True
    c.gateway.apply(State(2, [record()], [route(version="4")]))
    c.feed(b"more")
    [call] = c.router.sent
    assert (call.frame.data, call.frame.version, call.group) == (b"one more", "3", group)


@scene()
async def test_an_upload_to_a_deployment_that_is_gone_is_told_so(c):
    upload(c, lambda: c.gateway.apply(State(2, [record()], [])))
    assert not c.router.sent
    assert [status for status, _, _ in c.answers()] == [404]
    c.gateway.apply(State(3, [record()], [route()]))
    c.feed(post())
    assert len(c.router.sent) == 1


# Order


@scene()
async def test_pipelined_calls_are_answered_in_order(c):
    c.feed(b"".join(post(b"%d" % number) for number in range(5)))
    assert len(c.router.sent) == 5
    for number in (3, 1, 0, 4, 2):
        c.router.answer(c.router.sent[number], b"%d" % number)
    assert [body for _, _, body in c.answers()] == [b"0", b"1", b"2", b"3", b"4"]


@scene()
async def test_calls_and_other_requests_keep_their_order(c):
    other = b"GET /api/%d HTTP/1.1\r\nHost: x\r\n\r\n"
    c.feed(post(b"0") + other % 1 + post(b"2") + other % 3 + other % 4 + post(b"5"))
    await c.settle()
    assert not c.answers()
    c.router.answer(c.router.sent[2], b"5")
    c.router.answer(c.router.sent[0], b"0")
    await c.settle()
    assert [body for _, _, body in c.answers()] == [b"0", b"GET /api/1 0"]
    c.router.answer(c.router.sent[1], b"2")
    await c.settle()
    assert [body for _, _, body in c.answers()] == [b"2", b"GET /api/3 0", b"GET /api/4 0", b"5"]


@scene()
async def test_a_slow_request_of_asgi_holds_later_calls(c):
    c.feed(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + post())
    c.router.answer(c.router.sent[0], b"late")
    await c.settle()
    assert not c.answers()
    c.go.set()
    await c.settle()
    assert [body for _, _, body in c.answers()] == [b"POST /slow 3", b"late"]


@scene()
async def test_a_refusal_waits_for_its_turn_and_nothing_follows_it(c):
    c.feed(post(b"0") + post(b"x", auth="", length=1_000_000))
    assert not c.answers()
    c.router.answer(c.router.sent[0], b"0")
    assert [status for status, _, _ in c.answers()] == [200, 401]
    assert c.transport.eof


@scene()
async def test_reading_stops_when_too_much_is_pipelined(c):
    c.feed(b"".join(post() for _ in range(MAX_PIPELINED + 1)))
    assert not c.transport.reading
    for call in c.router.sent:
        c.router.answer(call)
    assert c.transport.reading


@scene()
async def test_reading_stops_when_too_much_of_asgi_is_pipelined(c):
    slow = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    c.feed(slow * (MAX_PIPELINED + 1))
    await c.settle()
    assert not c.transport.reading
    c.go.set()
    for _ in range(MAX_PIPELINED):
        await c.settle()
    assert c.transport.reading
    assert len(c.answers()) == MAX_PIPELINED + 1


@scene()
async def test_a_client_that_does_not_read_is_not_read(c):
    c.protocol.pause_writing()
    assert not c.transport.reading
    c.feed(b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
    await c.settle()
    assert not c.transport.reading
    c.protocol.resume_writing()
    assert c.transport.reading


# Ends


@scene()
async def test_connection_close_and_what_follows_it(c):
    c.feed(post(b"0", more="Connection: close\r\n") + post(b"1"))
    assert len(c.router.sent) == 1
    c.router.answer(c.router.sent[0], b"0")
    [(status, headers, _)] = c.answers()
    assert (status, headers["connection"]) == (200, "close")
    assert c.transport.closed


@scene()
async def test_http_1_0_is_answered_and_closed(c):
    c.feed(post().replace(b"HTTP/1.1", b"HTTP/1.0"))
    c.router.answer(c.router.sent[0])
    assert c.answers()[0][0] == 200
    assert c.transport.closed


@scene()
async def test_a_client_that_leaves_cancels_its_call_and_is_still_counted(c):
    c.feed(post(b"abc"))
    c.lose()
    [call] = c.router.sent
    assert c.router.link.cancelled == [1]
    assert c.bench.counted() == []
    c.router.answer(call, b"unread", units=9)
    assert c.bench.counted() == [(1, 1, 1, 9, 7, 3, 6)]
    assert 'code="499"' in exposition(c.gateway.metrics.families("team")).decode()
    assert not call.restart()


@scene()
async def test_a_client_that_leaves_before_its_body_is_whole(c):
    c.feed(post(b"a", length=100))
    c.lose()
    assert not c.router.sent


@scene()
async def test_a_client_that_leaves_an_app(c):
    c.feed(b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nabc", b"")
    await c.settle()
    c.lose()
    await c.settle()
    assert c.gone.is_set()


@scene()
async def test_shutdown_closes_idle_and_finishes_the_rest(c):
    c.feed(post())
    c.protocol.shutdown()
    assert not c.transport.closed
    c.router.answer(c.router.sent[0])
    assert c.answers()[0][1]["connection"] == "close"
    assert c.transport.closed


@scene()
async def test_shutdown_of_an_idle_connection(c):
    c.protocol.shutdown()
    assert c.transport.closed


@scene()
async def test_an_idle_connection_is_closed(c):
    now, idle = asyncio.get_running_loop().time(), c.bench.settings.idle_timeout
    c.protocol.sweep(now + idle - 1, 60)
    assert not c.transport.closed
    c.feed("POST /v2/mod")
    c.protocol.sweep(now + idle + 5, 60)
    assert c.transport.closed


@scene()
async def test_who_asked_while_nobody_looked_is_not_idle(c):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        c.transport.extra["socket"] = ours
        late = asyncio.get_running_loop().time() + c.bench.settings.idle_timeout + 5
        theirs.send(b"POST")
        c.protocol.sweep(late, 60)
        assert not c.transport.closed
        ours.recv(4)
        c.protocol.sweep(late, 60)
        assert c.transport.closed


@scene()
async def test_a_body_that_never_ends_is_refused(c):
    c.feed(post(b"x", length=50))
    c.protocol.sweep(asyncio.get_running_loop().time() + 59, 60)
    assert not c.answers()
    c.protocol.sweep(asyncio.get_running_loop().time() + 61, 60)
    assert [status for status, _, _ in c.answers()] == [408]
    assert LINGER > 0


UPLOAD = b"PUT /api/blobs/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


def sweep(c, seconds, every=0.5):
    """Let time pass, as the gateway's watch does; `seconds` since the test's first sweep."""
    c.start = getattr(c, "start", asyncio.get_running_loop().time())
    c.past = getattr(c, "past", 0.0)
    while c.past < seconds:
        c.protocol.sweep(c.start + c.past, 60)
        c.past += every


@pytest.mark.parametrize("sent", [b"", b"abc"])
def test_a_body_for_control_that_stops_is_refused(tmp_path, sent):
    @scene()
    async def run(c):
        c.feed(UPLOAD + sent)
        await c.settle()
        sweep(c, 59)
        assert not c.answers()
        sweep(c, 62)
        await c.settle()
        [(status, headers, _)] = c.answers()
        assert (status, headers["connection"]) == (408, "close")
        assert c.transport.eof
        assert c.gone.is_set()
        c.feed(b"x" * 90_000)
        assert not c.answers()

    run(tmp_path)


@scene()
async def test_a_body_for_control_that_drips_is_refused(c):
    c.feed(UPLOAD)
    for second in range(70):
        if c.transport.written:
            break
        c.feed(b"x")
        await c.settle()
        sweep(c, second)
    assert [status for status, _, _ in c.answers()] == [408]


@scene()
async def test_a_body_for_control_that_gets_on_takes_its_time(c):
    c.feed(UPLOAD)
    for second in range(0, 80, 5):
        c.feed(b"x" * 6000)
        await c.settle()
        sweep(c, second)
    sweep(c, 130)
    assert not c.answers()
    c.feed(b"x" * 4000)
    await c.settle()
    assert [(status, body) for status, _, body in c.answers()] == [(200, b"PUT /api/blobs/x 100000")]


@scene()
async def test_a_body_that_we_do_not_read_is_not_late(c):
    c.feed(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000)
    await c.settle()
    assert not c.transport.reading
    sweep(c, 200)
    assert not c.answers()
    c.go.set()
    await c.settle()
    c.feed(b"x" * 30_000)
    await c.settle()
    assert [status for status, _, _ in c.answers()] == [200]


@scene()
async def test_an_unfinished_body_behind_a_call_waits_for_its_turn_to_be_refused(c):
    c.feed(post(b"0") + UPLOAD)
    sweep(c, 62)
    assert not c.answers()
    c.router.answer(c.router.sent[0], b"0")
    await c.settle()
    assert [status for status, _, _ in c.answers()] == [200, 408]


@scene()
async def test_a_client_that_never_reads_is_cut_off(c):
    c.feed(post())
    c.router.answer(c.router.sent[0], b"x" * 1000)  # which the transport keeps
    idle = c.bench.settings.idle_timeout
    sweep(c, idle - 1)
    assert not c.transport.closed
    sweep(c, idle + 1)
    assert c.transport.aborted


@scene()
async def test_a_client_that_reads_slowly_is_not_cut_off(c):
    c.feed(post())
    c.router.answer(c.router.sent[0], b"x" * 1000)
    for second in range(0, 600, 30):
        c.transport.waiting -= 1
        sweep(c, second)
    assert not c.transport.aborted


@scene()
async def test_a_call_under_way_is_not_idle(c):
    c.feed(post())
    c.protocol.sweep(asyncio.get_running_loop().time() + 1000, 60)
    assert not c.transport.closed
    assert not c.answers()


# What is no HTTP


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        post(more="Transfer-Encoding: chunked\r\n"),
        post().replace(b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 2"),
        post().replace(b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 3"),
        post().replace(b"Content-Length: 2", b"Content-Length: +2"),
        post().replace(b"Content-Length: 2", b"Content-Length: 2, 2"),
        post().replace(b"Content-Length: 2", b"Content-Length: -2"),
        post().replace(b"Content-Length: 2", b"Content-Length: 99999999999999999999999"),
        post().replace(b"Content-Length: 2", b"Content-Length : 2"),
        post().replace(b"Host: x", b"Host: x\r\n folded"),
        post().replace(b"Host: x", b"Ho\x00st: x"),
        post().replace(b"Host: x", b"Host: x\x00y"),
        post().replace(b"\r\n", b"\n"),
        post().replace(b"Content-Length: 2", b"Transfer-Encoding: gzip, identity"),
        post().replace(b"Content-Length: 2", b"Transfer-Encoding: xchunked"),
        post().replace(b"Content-Length: 2", b"Transfer-Encoding: chunked, identity"),
        b"CONNECT example:443 HTTP/1.1\r\nHost: example\r\n\r\n",
    ],
)
def test_what_cannot_be_trusted_is_refused_and_closed(tmp_path, wire):
    @scene()
    async def run(c):
        c.feed(wire, post())
        await c.settle()
        [(status, headers, _)] = c.answers()
        assert (status, headers["connection"]) == (400, "close")
        assert not c.router.sent
        assert c.transport.closed or c.transport.eof

    run(tmp_path)


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "gzip,chunked", "identity, chunked", "GZIP , Chunked", "gzip\r\nTransfer-Encoding: chunked"]
)
@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/api/jobs"])
def test_a_transfer_coding_beside_chunks_is_not_implemented(tmp_path, path, coding):
    """RFC 9112, 6.1: the body would be read as if it were plain."""

    @scene()
    async def run(c):
        c.feed(chunked(b"{}").replace(b": chunked", f": {coding}".encode()).replace(b"/v2/models/digits/infer", path.encode()))
        c.feed(post())
        await c.settle()
        [(status, headers, _)] = c.answers()
        assert (status, headers["connection"]) == (501, "close")
        assert not c.router.sent
        assert c.transport.closed or c.transport.eof

    run(tmp_path)


@scene()
async def test_chunked_is_known_in_any_letters(c):
    c.feed(chunked(b"abc").replace(b": chunked", b":  Chunked "))
    assert c.router.sent[0].frame.data == b"abc"


@scene()
async def test_bad_chunks_end_a_call_that_was_not_sent(c):
    c.feed(chunked(b"abc")[:-5] + b"zz\r\n", post())
    assert [status for status, _, _ in c.answers()] == [400]
    assert not c.router.sent


@scene()
async def test_bad_chunks_end_a_request_of_asgi(c):
    c.feed(b"POST /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
    await c.settle()
    assert [status for status, _, _ in c.answers()] == [400]
    assert c.gone.is_set()


@scene()
async def test_bad_chunks_cut_an_answer_that_has_begun(c):
    c.feed(b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await c.settle()
    c.feed(b"zz\r\n")
    assert c.transport.aborted


@scene()
async def test_good_requests_before_a_bad_one_are_answered_first(c):
    c.feed(post(b"0") + b"garbage\r\n\r\n")
    assert not c.answers()
    c.router.answer(c.router.sent[0], b"0")
    assert [status for status, _, _ in c.answers()] == [200, 400]


@pytest.mark.parametrize("pieces", [[b"X: " + b"a" * 5000 + b"\r\n"] * 40, [b"Y: "] + [b"b" * 10_000] * 20])
def test_endless_headers(tmp_path, pieces):
    @scene()
    async def run(c):
        c.feed(b"POST /v2/models/digits/infer HTTP/1.1\r\n")
        fed = 0
        for piece in pieces:
            c.feed(piece)
            fed += len(piece)
            if c.transport.written:
                break
        assert fed <= MAX_HEAD + 10_000
        assert [status for status, _, _ in c.answers()] == [431]

    run(tmp_path)


@scene()
async def test_endless_trailers(c):
    c.feed(chunked(b"a")[:-2])
    for _ in range(100):
        c.feed(b"T: " + b"a" * 9000 + b"\r\n")
    assert [status for status, _, _ in c.answers()] == [431]
    assert not c.router.sent


@scene()
async def test_trailers_are_no_headers(c):
    c.feed(chunked(b"abc", trailers="X-Request-Id: forged\r\n"))
    assert c.router.sent[0].id != "forged"
    c.router.answer(c.router.sent[0])
    c.feed(b"POST /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    await c.settle()
    assert all(name != b"authorization" for name, _ in c.protocol.scope["headers"])


@scene()
async def test_tiny_chunks_are_not_taken_for_headers(c):
    wire = chunked(*[b"x"] * 100_000)
    c.feed(*(wire[at : at + 50_000] for at in range(0, len(wire), 50_000)))
    assert len(c.router.sent[0].frame.data) == 100_000


@pytest.mark.parametrize(
    "offer",
    [
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
    ],
)
def test_an_offered_upgrade_is_declined_by_answering(tmp_path, offer):
    @scene()
    async def run(c):
        c.feed(post(b"abc", more=offer) + post(b"next"))
        assert [call.frame.data for call in c.router.sent] == [b"abc", b"next"]
        for call in c.router.sent:
            c.router.answer(call)
        c.feed(f"GET /api HTTP/1.1\r\nHost: x\r\n{offer}\r\n")
        await c.settle()
        assert [status for status, _, _ in c.answers()] == [200, 200, 200]

    run(tmp_path)


@scene()
async def test_a_chunked_body_behind_an_offered_upgrade(c):
    c.feed(chunked(b"ab", b"cd", more="Connection: Upgrade\r\nUpgrade: h2c\r\n"))
    assert c.router.sent[0].frame.data == b"abcd"


@settings(max_examples=60)
@given(st.binary(max_size=500))
def test_no_bytes_break_the_protocol(tmp_path_factory, data):
    async def run():
        c = Connection(tmp_path_factory.mktemp("c"))
        c.feed(data)
        c.feed(post(more="") + data)
        await c.settle()

    asyncio.run(run())


# Heads that come again


@scene()
async def test_the_same_head_again_is_not_parsed_again_and_means_the_same(c):
    fed = []

    class Counting:
        def __init__(self, parser):
            self.parser = parser

        def feed_data(self, data):
            fed.append(data)
            self.parser.feed_data(data)

        def __getattr__(self, name):
            return getattr(self.parser, name)

    c.protocol.parser = Counting(c.protocol.parser)
    for number in range(4):
        c.feed(post(b"%d" % number))
        c.router.answer(c.router.sent[-1], b"%d" % number)
    assert len(fed) == 1
    assert [call.frame.data for call in c.router.sent] == [b"0", b"1", b"2", b"3"]
    ids = [headers["x-request-id"] for _, headers, _ in c.answers()]
    assert len(set(ids)) == 4
    assert [call.frame.head["x-request-id"] for call in c.router.sent] == ids
    c.feed(post(b"longer"), b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n", post(b"longer"))
    assert len(fed) == 2
    assert c.router.sent[-1].frame.data == b"longer"


@scene()
async def test_a_known_head_with_an_id_keeps_it(c):
    for _ in range(2):
        c.feed(post(more="X-Request-Id: mine\r\nInference-Header-Content-Length: 2\r\n"))
    assert [call.frame.head for call in c.router.sent] == [{"x-request-id": "mine", "inference-header-content-length": "2"}] * 2


@pytest.mark.parametrize("body", [b"{} ", b"\r\n{}", b"\r\n\r\n"])
def test_what_follows_a_body_is_not_taken_for_the_end_of_a_head(tmp_path, body):
    @scene()
    async def run(c):
        for tail in (b"\r\n", b"\r\n", b"", b"\r\n", b""):
            c.feed(post(body) + tail)
            c.router.answer(c.router.sent[-1])
        assert [call.frame.data for call in c.router.sent] == [body] * 5
        assert [status for status, _, _ in c.answers()] == [200] * 5

    run(tmp_path)


@scene()
async def test_a_known_head_in_the_middle_of_a_request_is_its_body(c):
    whole = post(b"0")
    c.feed(whole)
    outer = post(b"", length=len(whole))
    c.feed(outer, whole)
    assert [call.frame.data for call in c.router.sent] == [b"0", whole]


@scene()
async def test_a_known_head_behind_half_a_head_is_part_of_it(c):
    whole = post(b"0")
    c.feed(whole)
    c.feed(whole + b"POST /v2/models/digits/infer HTTP/1.1\r\nX-Begun: ", whole)
    c.router.answer(c.router.sent[0])
    c.router.answer(c.router.sent[1])
    assert len(c.router.sent) == 3  # the third has the known request's lines as headers, and its key
    assert c.router.sent[2].frame.data == b"0"


@scene()
async def test_a_known_head_is_refused_once_its_key_is_revoked(c):
    c.feed(post(b"0"))
    c.gateway.apply(State(2, [record(revoked=True)], [route()]))
    c.feed(post(b"1"), post(b"2"))
    c.router.answer(c.router.sent[0])
    assert [status for status, _, _ in c.answers()] == [200, 401, 401]
    assert len(c.router.sent) == 1


@pytest.mark.parametrize("more", ["Expect: 100-continue\r\n", "Connection: close\r\n"])
def test_heads_with_more_to_say_are_always_parsed(tmp_path, more):
    @scene()
    async def run(c):
        c.feed(post(more=more))
        assert c.protocol._known is None

    run(tmp_path)


@scene()
async def test_nothing_is_begun_after_the_last_request(c):
    c.feed(post(b"0"))
    c.protocol.shutdown()
    c.feed(post(b"0"))
    assert len(c.router.sent) == 1


@settings(max_examples=80)
@given(
    st.lists(st.sampled_from(["same", "same", "other", "chunked", "get", "bad key"]), max_size=8),
    st.lists(st.integers(0, 3000), max_size=6),
)
def test_however_it_is_cut_the_same_requests_are_seen(tmp_path_factory, kinds, cuts):
    wires = {
        "same": post(b"same"),
        "other": post(b"other!"),
        "chunked": chunked(b"in", b"pieces"),
        "get": b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n",
        "bad key": post(b"same", auth=AUTH.replace("my_k1", "my_k2")),
    }
    bodies = {"same": b"same", "other": b"other!", "chunked": b"inpieces"}

    async def run():
        c = Connection(tmp_path_factory.mktemp("c"))
        wire = b"".join(wires[kind] for kind in kinds)
        places = sorted({min(cut, len(wire)) for cut in cuts})
        c.feed(*(wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True) if a < b))
        assert [bytes(call.frame.data) for call in c.router.sent] == [bodies[kind] for kind in kinds if kind in bodies]

    asyncio.run(run())


# Answers in parts

EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache"}
ASKS = "Accept: text/event-stream\r\n"


def part(call, data, head=None):
    call.part(data, head)


def stream(data):
    """(head, body, whole) of one answer in chunks."""
    head, _, rest = data.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        number = int(size, 16)
        body, rest = body + rest[:number], rest[number + 2 :]
        if not number:
            assert not rest
            return head, body, True
    return head, body, False


@scene()
async def test_parts_are_passed_on_as_they_come_and_counted_at_the_end(c):
    c.feed(post(more=ASKS))
    [call] = c.router.sent
    assert call.frame.head["accept"] == "text/event-stream"
    part(call, b"data: 1\n\n", EVENTS)
    written = c.transport.take()
    head, body, whole = stream(written)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream\r\n" in head
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert (body, whole) == (b"data: 1\n\n", False)
    assert c.bench.counted() == []
    part(call, b"data: 2\n\n")
    part(call, b"")
    written += c.transport.take()
    assert stream(written)[1:] == (b"data: 1\n\ndata: 2\n\n", False)
    call.ended(Usage(2, 7), None)
    assert stream(written + c.transport.take())[1:] == (b"data: 1\n\ndata: 2\n\n", True)
    assert c.bench.counted() == [(1, 1, 0, 2, 7, 2, 18)]
    c.feed(post())
    c.router.answer(c.router.sent[1])
    assert [status for status, _, _ in c.answers()] == [200]


@scene()
async def test_a_stream_waits_for_its_turn(c):
    c.feed(post(), post(more=ASKS), post())
    first, second, third = c.router.sent
    part(second, b"data: 1\n\n", EVENTS)
    c.router.answer(third)
    assert not c.transport.written
    c.router.answer(first)
    data = c.transport.take()
    assert data.count(b"HTTP/1.1 200") == 2
    assert data.endswith(b"9\r\ndata: 1\n\n\r\n")
    part(second, b"data: 2\n\n")
    second.ended(Usage(2, 1), None)
    data = c.transport.take()
    assert data.startswith(b"9\r\ndata: 2\n\n\r\n0\r\n\r\nHTTP/1.1 200")


@scene()
async def test_what_was_passed_on_is_not_asked_for_again(c):
    c.feed(post(more=ASKS))
    [call] = c.router.sent
    assert call.restart()
    part(call, b"data: 1\n\n", EVENTS)
    assert not call.restart()
    call.ended(Usage(1, 1), Fault("unavailable", "The replica ended."))
    _, body, whole = stream(c.transport.take())
    assert (body, whole) == (b'data: 1\n\ndata: {"error":"The replica ended."}\n\n', True)
    assert c.bench.counted()[0][1:4] == (1, 1, 1)


@scene()
async def test_a_refusal_before_the_first_part_has_its_status(c):
    c.feed(post(more=ASKS))
    c.router.fail(c.router.sent[0], "invalid_request")
    assert c.answers()[0][0] == 400


@scene()
async def test_a_stream_that_is_late_ends_with_an_event_and_takes_no_more(c):
    c.feed(post(more=ASKS))
    [call] = c.router.sent
    part(call, b"data: 1\n\n", EVENTS)
    call.late(Fault("timed_out", "too late"))
    part(call, b"data: 2\n\n")
    call.ended(Usage(2, 5), None)
    assert stream(c.transport.take())[1:] == (b'data: 1\n\ndata: {"error":"too late"}\n\n', True)
    assert c.bench.counted()[0][1:5] == (1, 1, 2, 5)


@scene()
async def test_a_client_that_leaves_a_stream_cancels_it(c):
    c.feed(post(more=ASKS))
    [call] = c.router.sent
    part(call, b"data: 1\n\n", EVENTS)
    c.lose()
    assert c.router.link.cancelled == [call.frame.id]
    part(call, b"data: 2\n\n")
    call.ended(Usage(2, 5), Fault("cancelled", "The caller went away."))
    assert c.bench.counted()[0][1:5] == (1, 1, 2, 5)
    assert 'code="499"' in exposition(c.gateway.metrics.families("team")).decode()


@scene(body_limit=1000)
async def test_a_client_that_does_not_read_its_stream_is_cut_off(c):
    c.feed(post(more=ASKS))
    [call] = c.router.sent
    part(call, b"x" * 500, EVENTS)
    assert not c.transport.aborted
    part(call, b"x" * 600)
    assert c.transport.aborted


@scene()
async def test_a_client_of_http_1_0_gets_its_events_whole(c):
    c.feed(post(more=ASKS).replace(b"HTTP/1.1", b"HTTP/1.0"))
    [call] = c.router.sent
    part(call, b"data: 1\n\n", EVENTS)
    assert not c.transport.written
    part(call, b"data: 2\n\n")
    call.ended(Usage(2, 1), None)
    [(status, headers, body)] = c.answers()
    assert (status, headers["content-type"], body) == (200, "text/event-stream", b"data: 1\n\ndata: 2\n\n")
    assert c.transport.closed


@pytest.mark.parametrize("path", ["/\0grpc/digits", "http://x/\0grpc/digits", "/%00grpc/digits"])
def test_the_way_of_grpc_is_not_open_to_http(tmp_path, path):
    @scene()
    async def run(c):
        c.feed(post(path=path))
        await c.settle()
        assert not c.router.sent
        if "%" not in path:
            assert [status for status, _, _ in c.answers()] == [400]

    run(tmp_path)
