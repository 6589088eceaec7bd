"""HTTP as the client speaks it: the key on every request, errors back as our classes, and retries only where they are safe.

A retry is safe for GET, HEAD, PUT and DELETE, and for management POSTs, which carry an `Idempotency-Key`. Inference POSTs are
sent again only where the connection was refused, so that nothing is computed, or paid for, twice.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from modelyard.client.profile import Profile
from modelyard.errors import (
    Conflict,
    Forbidden,
    Internal,
    Invalid,
    ModelyardError,
    NotFound,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
    from_wire,
)

# Seconds between tries; their number is the number of retries.
PAUSES = (0.1, 0.3, 0.6, 1.0)
# Seconds without a line after which a stream is asked for anew.
SILENCE = 30.0
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_BY_STATUS: Mapping[int, type[ModelyardError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Invalid,
    503: Unavailable,
    504: TimedOut,
}

Body = Callable[[], Iterable[bytes]]


class Wire:
    """Requests to one platform. Safe to use from several threads."""

    def __init__(self, profile: Profile, *, timeout: float = 120.0) -> None:
        self.profile = profile
        self._http = httpx.Client(
            base_url=profile.url,
            headers={"Authorization": f"Bearer {profile.key}"},
            timeout=httpx.Timeout(timeout, connect=10.0),
            trust_env=not is_loopback(profile.url),
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of a GET; parameters that are None are left out."""
        return self.send("GET", path, params={name: value for name, value in params.items() if value is not None}).json()

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer of a management POST, repeated safely under one `Idempotency-Key`."""
        return self.send("POST", path, json=body, headers={"Idempotency-Key": secrets.token_hex(16)}).json()

    def put(self, path: str, body: Any = None) -> Any:
        return _json_or_none(self.send("PUT", path, json=body))

    def delete(self, path: str) -> Any:
        return _json_or_none(self.send("DELETE", path))

    def exists(self, path: str) -> bool:
        """Whether a HEAD finds it. Raises every error but `NotFound`."""
        try:
            self.send("HEAD", path)
        except NotFound:
            return False
        return True

    def send(self, method: str, path: str, *, body: Body | None = None, **options: Any) -> httpx.Response:
        """One request, repeated where that is safe; `body()` gives the content anew for every try. Raises the wire's errors."""
        repeatable = method in _REPEATABLE or "Idempotency-Key" in options.get("headers", {})
        for pause in (*PAUSES, None):
            try:
                response = self._http.request(method, path, content=body() if body else None, **options)
            except httpx.TransportError as error:
                if pause is None or not may_repeat(error, repeatable):
                    raise failure(error, self.profile.url) from error
            else:
                if response.is_success:
                    return response
                if pause is None or response.status_code != 503 or not repeatable:
                    raise error_of(response.status_code, response.content)
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def download(self, path: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """The body of a GET in pieces. Raises the wire's errors; not repeated."""
        try:
            with self._http.stream("GET", path, headers=dict(headers)) as response:
                if not response.is_success:
                    raise error_of(response.status_code, response.read())
                yield from response.iter_bytes(1 << 20)
        except httpx.TransportError as error:
            raise failure(error, self.profile.url) from error

    def lines(self, path: str, **params: Any) -> Iterator[Any]:
        """The JSON lines of a stream, for as long as it lasts. Raises `Unavailable` where the connection is lost, `TimedOut`
        where it has been silent for a while: a dead one looks the same."""
        try:
            with self._http.stream("GET", path, params=params, timeout=httpx.Timeout(SILENCE, connect=10.0)) as response:
                if not response.is_success:
                    raise error_of(response.status_code, response.read())
                for line in response.iter_lines():
                    if line.strip():
                        yield json.loads(line)
        except httpx.TransportError as error:
            raise failure(error, self.profile.url) from error


def may_repeat(error: httpx.TransportError, repeatable: bool) -> bool:
    """Whether a request that failed so may be sent again: always if it never left, else if repeating it changes nothing."""
    if isinstance(error, httpx.ConnectError):
        return True
    return repeatable and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)


def failure(error: httpx.TransportError, url: str) -> ModelyardError:
    """What a broken transport means to the caller."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unavailable(f"No platform answers at {url}. Start it with `modelyard up`, or set MODELYARD_URL to where it is.")
    if isinstance(error, httpx.TimeoutException):
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


def is_loopback(url: str) -> bool:
    """Whether a URL is this machine's: then no proxy of the environment may see what is sent."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _json_or_none(response: httpx.Response) -> Any:
    return response.json() if response.content else None
