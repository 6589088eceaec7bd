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
