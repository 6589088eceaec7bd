"""Where errors become HTTP, and which browsers may speak to us. Every process that answers HTTP uses this one table:
the routes of control (FastAPI) and the gateway (its own HTTP). It knows no web framework and no database.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from modelyard.errors import (
    CallerError,
    Conflict,
    Forbidden,
    ModelyardError,
    NotFound,
    Overloaded,
    RateLimited,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
)

# A class that is not here has the status of its nearest ancestor.
STATUS: Mapping[type[ModelyardError], int] = {
    ModelyardError: 500,
    CallerError: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    RateLimited: 429,
    Unavailable: 503,
    Overloaded: 429,
    TimedOut: 504,
}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def status(error: ModelyardError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def body(error: ModelyardError) -> dict[str, Any]:
    """The JSON of an error, the same for every route."""
    return {"error": {"code": error.code, "message": error.message}}


def headers(error: ModelyardError) -> dict[str, str]:
    """Headers that belong to an error's status."""
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RateLimited):
        return {"Retry-After": str(max(1, math.ceil(error.wait)))}
    return {"Retry-After": "1"} if isinstance(error, Unavailable | Overloaded) else {}


def check_source(method: str, host: str | None, origin: str | None, hosts: Collection[str] | None = None) -> None:
    """Refuse a change asked for by a foreign page: DNS rebinding and cross-site requests. Raises `Forbidden`.

    `origin` must be this very host. With `hosts` the Host header must besides be one of them, 'localhost' or an address: a
    rebound name is none of these. '*' among them allows any; without `hosts` (None) it is not looked at.
    """
    if method in _SAFE_METHODS:
        return
    if hosts is not None and not _is_ours(_hostname(host), hosts):
        raise Forbidden(
            "This server does not go by the name in the Host header: use its address, or add it to MODELYARD_HOSTS."
        )
    if origin is not None and _netloc(origin) != (host or "").lower():
        raise Forbidden("Pages of another origin may not change anything here.")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _hostname(host: str | None) -> str:
    try:
        return (urlsplit(f"//{host or ''}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_ours(name: str, hosts: Collection[str]) -> bool:
    if name == "localhost" or any(known in ("*", name) for known in map(str.lower, hosts)):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
