"""Answers as bytes: one status line, one length, and no header that a replica could smuggle another line into."""

from __future__ import annotations

import httptools
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving import heads


class Seen:
    def __init__(self, data):
        self.headers, self.body, self.messages = [], b"", 0
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)

    def on_header(self, name, value):
        self.headers.append((name, value))

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.messages += 1


@given(
    st.sampled_from([200, 400, 413, 503]),
    st.none()
    | st.dictionaries(
        st.text("abcdefgh-: \r\n", max_size=8)
        | st.sampled_from(["content-length", "Transfer-Encoding", "content-length ", "connection", "x-request-id", "date"]),
        st.text(max_size=20) | st.sampled_from(["chunked", "5", "close"]),
        max_size=3,
    ),
    st.binary(max_size=50),
    st.booleans(),
)
def test_whatever_a_replica_says_it_is_one_answer(status, head, body, keep_alive):
    seen = Seen(heads.answer(status, b"date: now\r\n", "id-1", keep_alive, head, body))
    assert seen.messages == 1
    assert seen.parser.get_status_code() == status
    assert seen.body == body
    names = [name for name, _ in seen.headers]
    assert names.count(b"content-length") == names.count(b"x-request-id") == names.count(b"date") == 1
    assert (b"connection" in names) != keep_alive
    assert len(seen.headers) <= 5 + len(head or {})


def test_plain_json():
    assert heads.answer(200, b"", "a", True, None, bytearray(b"{}")) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: a\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_the_date_is_joined_once_for_a_list():
    defaults, first = heads.Defaults(), [(b"date", b"1")]
    assert defaults.lines(first) is defaults.lines(first)
    assert defaults.lines([(b"date", b"2")]) == b"date: 2\r\n"


HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n%b\r\nX-More: 1\r\n\r\n"


class Asked:
    """What llhttp says of bytes that came at once: the bodies of whole requests, and whether it took them all."""

    def __init__(self, data):
        self.headers, self.body, self.bodies, self.fine = [], b"", [], True
        try:
            httptools.HttpRequestParser(self).feed_data(data)
        except httptools.HttpParserError:
            self.fine = False

    def on_message_begin(self):
        self.body, self.headers = b"", []

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.bodies.append((self.body, self.headers))


@given(
    st.sampled_from([b"Content-Length: 5", b"content-length:5", b"CONTENT-LENGTH:  5", b"Content-Length: 0005"]),
    st.text("0123456789+-_., xX\t\r\n", max_size=9).map(str.encode) | st.integers(0, 30).map(b"%d".__mod__),
    st.binary(max_size=30),
)
def test_a_request_that_passes_for_a_known_one_is_what_llhttp_would_have_read(line, digits, body):
    known = heads.Known.of(HEAD % line, b"", (), {}, None)
    assert known is not None
    assert known.body(HEAD % line + b"12345") == b"12345"
    data = known.before + digits + known.after + body
    found = known.body(data)
    asked = Asked(data)
    if found is not None:
        assert asked.fine
        assert [body for body, _ in asked.bodies] == [found]
        assert len(asked.bodies[0][1]) == 3
    plain = digits.isdigit() and len(digits) < 8 and int(digits) == len(body)
    assert (found == body) if plain else (found is None)


@given(st.binary(max_size=200))
def test_what_does_not_begin_as_the_known_one_is_no_known_one(data):
    known = heads.Known.of(HEAD % b"Content-Length: 5", b"", (), {}, None)
    assert known.body(data) is None


def test_a_head_that_says_no_length_or_two_is_not_remembered():
    for line in (
        b"Expect: nothing",
        b"Content-Length: 1\r\nContent-Length: 1",
        b"Content-Length: 123456789",
        b"Content-Length: 1 ",
    ):
        assert heads.Known.of(HEAD % line, b"", (), {}, None) is None


@given(st.binary(max_size=50), st.text("abc-123", min_size=1, max_size=20))
def test_a_plain_answer_is_the_answer(body, call_id):
    told = [(b"date", b"now"), (b"server", b"us")]
    defaults = heads.Defaults()
    assert defaults.plain(told, call_id, body) == heads.answer(200, defaults.lines(told), call_id, True, None, body)
    later = [(b"date", b"later")]
    assert defaults.plain(later, call_id, body) == heads.answer(200, defaults.lines(later), call_id, True, None, body)
