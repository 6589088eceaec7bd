"""HTTP as the client speaks it: the key on every request, errors back as our classes, and retries only where they are safe.

A retry is safe for GET, HEAD, PUT and DELETE, and for management POSTs, which carry an `Idempotency-Key`. Inference POSTs are
sent again only where the connection was refused, so that nothing is computed, or paid for, twice. It stands on httpcore alone:
what httpx adds takes a command line longer to load than all of the rest of the client.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

import httpcore

from modelyard.client.profile import Profile
from modelyard.errors import (
    Conflict,
    Forbidden,
    Internal,
    Invalid,
    ModelyardError,
    NotFound,
    Overloaded,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
    from_wire,
)
from modelyard.plugins import load

# Seconds between tries; their number is the number of retries.
PAUSES = (0.1, 0.3, 0.6, 1.0)
# Seconds without a line after which a stream is asked for anew.
SILENCE = 30.0
# What goes wrong between two machines, before there is an answer or in the middle of it.
BROKEN = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
_CONNECT = 10.0
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_BY_STATUS: Mapping[int, type[ModelyardError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Invalid,
    429: Overloaded,
    503: Unavailable,
    504: TimedOut,
}

Body = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; the names of its headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Wire:
    """Requests to one platform. Safe to use from several threads."""

    def __init__(self, profile: Profile, *, timeout: float = 120.0) -> None:
        self.profile, self._timeout = profile, timeout
        self._url = urlsplit(profile.url)
        self._pool = httpcore.ConnectionPool(
            proxy=proxy_of(profile.url), max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0
        )

    def close(self) -> None:
        self._pool.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of a GET; parameters that are None are left out, of a list each value goes by itself."""
        return self.send("GET", with_query(path, params)).json()

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer of a management POST, repeated safely under one `Idempotency-Key`."""
        return self._send_json("POST", path, body, {"Idempotency-Key": secrets.token_hex(16)}).json()

    def put(self, path: str, body: Any = None) -> Any:
        return _json_or_none(self._send_json("PUT", path, body, {}))

    def delete(self, path: str) -> Any:
        return _json_or_none(self.send("DELETE", path))

    def exists(self, path: str) -> bool:
        """Whether a HEAD finds it. Raises every error but `NotFound`."""
        try:
            self.send("HEAD", path)
        except NotFound:
            return False
        return True

    def send(self, method: str, path: str, *, body: Body | None = None, headers: Mapping[str, str] | None = None) -> Response:
        """One request, repeated where that is safe; `body()` gives the content anew for every try. Raises the wire's errors."""
        headers = headers or {}
        repeatable = method in _REPEATABLE or "Idempotency-Key" in headers
        for pause in (*PAUSES, None):
            try:
                with self._ask(method, path, headers, body) as asked:
                    content = asked.read()
            except BROKEN as error:
                if pause is None or not may_repeat(error, repeatable):
                    raise failure(error, self.profile.url) from error
            else:
                if asked.status // 100 == 2:
                    return Response(asked.status, _headers(asked), content)
                if pause is None or asked.status != 503 or not repeatable:
                    raise error_of(asked.status, content)
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def download(self, path: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """The body of a GET in pieces. Raises the wire's errors; not repeated."""
        try:
            with self._ask("GET", path, headers) as asked:
                if asked.status // 100 != 2:
                    raise error_of(asked.status, asked.read())
                yield from asked.iter_stream()
        except BROKEN as error:
            raise failure(error, self.profile.url) from error

    def lines(self, path: str, **params: Any) -> Iterator[Any]:
        """The JSON lines of a stream, for as long as it lasts. Raises `Unavailable` where the connection is lost, `TimedOut`
        where it has been silent for a while: a dead one looks the same."""
        try:
            with self._ask("GET", with_query(path, params), {}, silence=SILENCE) as asked:
                if asked.status // 100 != 2:
                    raise error_of(asked.status, asked.read())
                yield from (json.loads(line) for line in lines_of(asked.iter_stream()) if line.strip())
        except BROKEN as error:
            raise failure(error, self.profile.url) from error

    def _send_json(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Response:
        if body is None:
            return self.send(method, path, headers=headers)
        content = json.dumps(body).encode()
        described = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        return self.send(method, path, body=lambda: (content,), headers={**headers, **described})

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None = None, silence: float | None = None
    ) -> contextlib.AbstractContextManager[httpcore.Response]:
        """One request, once; its answer's body is read within the context. `silence`: seconds it may pause."""
        patience, url = silence or self._timeout, self._url
        sent = {"Host": url.netloc.rpartition("@")[2].encode("idna").decode(), "User-Agent": "modelyard", "Accept": "*/*"}
        sent |= {"Authorization": f"Bearer {self.profile.key}", **traced(), **headers}
        if body is None and method in ("POST", "PUT"):
            sent["Content-Length"] = "0"
        return self._pool.stream(
            method,
            httpcore.URL(scheme=url.scheme, host=(url.hostname or "").encode("idna"), port=url.port, target=url.path + path),
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in sent.items()],
            content=iter(body()) if body else None,
            extensions={"timeout": {"connect": _CONNECT, "read": patience, "write": patience, "pool": patience}},
        )


def traced() -> dict[str, str]:
    """The header of the trace that this program is in by OpenTelemetry, if it is in one. Who has not loaded that is in none."""
    tracing = sys.modules.get("opentelemetry.trace")
    context = None if tracing is None else tracing.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return {}
    return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}


def with_query(path: str, params: Mapping[str, Any]) -> str:
    """A path and its parameters; those that are None are left out, of a list each value goes by itself."""
    query = urlencode({name: value for name, value in params.items() if value is not None}, doseq=True)
    return f"{path}?{query}" if query else path


def segment(name: str) -> str:
    """A name as one segment of a path: nothing in it can leave that."""
    if name in ("", ".", ".."):
        raise Invalid(f"'{name}' is not a name.")
    return quote(name, safe="")


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream that comes in pieces of any size, each as soon as it is whole."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    yield rest


def may_repeat(error: Exception, repeatable: bool) -> bool:
    """Whether a request that failed so may be sent again: always if it never left, else if repeating it changes nothing."""
    if isinstance(error, httpcore.ConnectError):
        return True
    return repeatable and isinstance(error, httpcore.RemoteProtocolError | httpcore.ReadError | httpcore.WriteError)


def failure(error: Exception, url: str) -> ModelyardError:
    """What a broken transport means to the caller."""
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
        return Unavailable(f"No platform answers at {url}. Start it with `modelyard up`, or set MODELYARD_URL to where it is.")
    if isinstance(error, httpcore.TimeoutException):
        return TimedOut(f"{url} did not answer in time.")
    return Unavailable(f"The connection to {url} broke: {error or type(error).__name__}.")


def error_of(status: int, content: bytes) -> ModelyardError:
    """The error an answer carries: `{"error":{"code","message"}}`, or the inference protocol's `{"error":"…"}`."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if isinstance(error, dict) and "code" in error:
        return from_wire(str(error["code"]), str(error.get("message", "")))
    message = error if isinstance(error, str) else None
    cls = _BY_STATUS.get(status, Internal if status >= 500 else Invalid)
    return cls(message or f"The server answered {status}.")


def proxy_of(url: str) -> httpcore.Proxy | None:
    """The proxy that the environment names for a URL (`HTTPS_PROXY`, `NO_PROXY`, …); never one for this machine itself."""
    if is_loopback(url):
        return None
    parts = urlsplit(url)
    proxies: Mapping[str, str] = load("urllib.request:getproxies")()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or load("urllib.request:proxy_bypass")(parts.netloc.rpartition("@")[2]):
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    return httpcore.Proxy(f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}", auth=auth)


def is_loopback(url: str) -> bool:
    """Whether a URL is this machine's: then no proxy of the environment may see what is sent."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _json_or_none(response: Response) -> Any:
    return response.json() if response.content else None
