"""Heads of HTTP messages: how an answer's is written, and what is remembered of a request's that will come again.

`http` uses both. A client that keeps its connection usually sends the same head byte for byte; what llhttp said of it once,
between two messages, it would say again, so it is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from modelyard.serving import coding
from modelyard.serving.admission import Credentials
from modelyard.serving.gateway import CREDENTIALS

FORWARDED = 256  # bytes of a header's line that goes with a call, and twice that of all its lines: they must fit a frame
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
END = b"\r\n\r\n"  # of a head
# Headers that say something of the body; a request with none but the plain ones may be known again.
PLAIN = frozenset({b"content-length", b"x-request-id"})
SPECIAL = frozenset({b"content-length", b"x-request-id", b"expect", b"transfer-encoding"})
_LENGTHS = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,7})(?=\r\n)", re.IGNORECASE)
_DIGITS = 8  # and the end of the line
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_OURS = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade", "x-request-id"})
_JSON = b"content-type: application/json\r\n"


class Known(NamedTuple):
    """A request's head as it was sent, `before` and `after` the digits of its Content-Length, and what was found in it."""

    before: bytes
    after: bytes
    url: bytes
    credentials: Credentials
    forwarded: dict[str, str]
    call_id: bytes | None

    @staticmethod
    def of(head: bytes, url: bytes, credentials: Credentials, forwarded: dict[str, str], call_id: bytes | None) -> Known | None:
        """What is remembered of a head that llhttp took; None where it says no length, or says it in an odd way."""
        found = list(_LENGTHS.finditer(head))
        if len(found) != 1:
            return None
        (length,) = found
        return Known(head[: length.start(1)], head[length.end(1) :], url, credentials, forwarded, call_id)

    def body(self, data: bytes) -> bytes | None:
        """The body of a request that is whole in `data` and begins with this head but for its length; None for any other:
        llhttp must see it."""
        start = len(self.before)
        if not data.startswith(self.before):
            return None
        end = data.find(b"\r", start, start + _DIGITS)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self.after, end):
            return None
        body = data[end + len(self.after) :]
        return body if len(body) == int(digits) else None


def read(
    headers: Iterable[tuple[bytes, bytes]], told: Mapping[bytes, str], limit: int
) -> tuple[Credentials, dict[str, str], dict[bytes, bytes]]:
    """A call's headers (lower case): who asks, what a replica is `told`, and what concerns the body's way here. `limit` is
    that of a body."""
    credentials: Credentials = ()
    head: dict[str, str] = {}
    special: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in CREDENTIALS:
            credentials += ((name, value),)
        elif name in SPECIAL:
            special[name] = value
        elif name in told:
            known, text = told[name], value[:FORWARDED].decode("latin-1")
            head[known] = f"{head[known]}, {text}"[: 2 * FORWARDED] if known in head else text
    if head:
        coding.tell(head, limit)
    return credentials, head, special


class Defaults:
    """The server's own header lines (date), joined once a second: uvicorn makes a new list then."""

    def __init__(self) -> None:
        self._of: list[tuple[bytes, bytes]] | None = None
        self._lines = self._plain = b""

    def lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        if headers is not self._of:
            self._of, self._lines = headers, b"".join(b"%b: %b\r\n" % pair for pair in headers)
            self._plain = b"%b%b%bx-request-id: " % (STATUS_LINE[200], self._lines, _JSON)
        return self._lines

    def plain(self, headers: list[tuple[bytes, bytes]], call_id: str, body: bytes | bytearray) -> bytes:
        """A whole answer as most are: plain JSON on a connection that is kept. The same as `answer` makes of it."""
        if headers is not self._of:
            self.lines(headers)
        start = b"%b%b\r\ncontent-length: %d\r\n\r\n" % (self._plain, call_id.encode(), len(body))
        return b"".join((start, body))


def is_coded_twice(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a body has a coding beside its chunks; all else but chunks alone is an error to llhttp."""
    codings = [coding for name, value in headers if name == b"transfer-encoding" for coding in value.split(b",")]
    return len(codings) > 1 and codings[-1].strip().lower() == b"chunked"


def without_upgrade(headers: Sequence[tuple[bytes, bytes]], keep_alive: bool) -> bytes:
    """The lines of a request that offered an upgrade, as if it had not."""
    kept = [(n, v) for n, v in headers if n not in (b"upgrade", b"http2-settings", b"connection")]
    if not keep_alive:
        kept.append((b"connection", b"close"))
    return b"".join(b"%b: %b\r\n" % pair for pair in kept)


def answer(
    status: int, defaults: bytes, call_id: str, keep_alive: bool, head: Mapping[str, str] | None, body: bytes | bytearray
) -> bytes:
    """A whole answer. `head` None: plain JSON. A header from a replica can neither end its line nor say where a body ends."""
    more = _JSON
    if head is not None:
        lines = [f"{name}: {value}\r\n" for name, value in head.items() if _may_pass(name, value)]
        more = "".join(lines).encode("latin-1", "replace") + (b"" if "content-type" in head else _JSON)
    start = b"%b%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
        STATUS_LINE[status],
        defaults,
        more,
        b"" if keep_alive else b"connection: close\r\n",
        call_id.encode(),
        len(body),
    )
    return b"".join((start, body))


def begin(defaults: bytes, call_id: str, keep_alive: bool, head: Mapping[str, str]) -> bytes:
    """The head of an answer that comes in chunks."""
    whole = answer(200, defaults, call_id, keep_alive, head, b"")
    return whole.removesuffix(b"content-length: 0\r\n\r\n") + b"transfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes, last: bool) -> bytes:
    """The next chunk of an answer, and behind the last one the end."""
    coded = b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty chunk would be the end
    return coded + b"0\r\n\r\n" if last else coded


def _may_pass(name: str, value: str) -> bool:
    return _NAME.fullmatch(name) is not None and name.lower() not in _OURS and value.isprintable()
