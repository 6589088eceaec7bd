"""Every error has a status, a body and headers; foreign pages and foreign names are refused."""

from __future__ import annotations

import pytest

from modelyard import errors
from modelyard.errors import (
    CallerError,
    Damaged,
    Forbidden,
    Invalid,
    ModelyardError,
    Overloaded,
    Unauthorized,
    Unavailable,
    Unsafe,
)
from modelyard.tenancy import door

EVERY = list(errors._tree(ModelyardError))


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_the_status_tells_whose_fault_it_is(cls: type[ModelyardError]):
    callers = issubclass(cls, CallerError) or cls is Overloaded  # 429 is the one word HTTP has for it
    assert door.status(cls()) in (range(400, 500) if callers else range(500, 600))


def test_a_class_that_is_not_listed_has_its_ancestors_status():
    class Novel(Unsafe):
        """New."""

        code = "novel"

    try:
        assert door.status(Novel()) == door.status(Invalid()) == 400
        assert door.status(Damaged()) == 500
    finally:
        del Novel


def test_body_and_headers():
    assert door.body(Invalid("x is missing")) == {"error": {"code": "invalid_request", "message": "x is missing"}}
    assert door.headers(Unauthorized()) == {"WWW-Authenticate": "Bearer"}
    assert door.headers(Unavailable()) == door.headers(Overloaded()) == {"Retry-After": "1"}
    assert door.status(Overloaded()) == 429
    assert door.headers(Invalid()) == {}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "INVENTED"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1:9999", "null", "", "http://127.0.0.1:8080.evil.example"]
)
def test_a_foreign_page_changes_nothing(method: str, origin: str):
    with pytest.raises(Forbidden, match="another origin"):
        door.check_source(method, "127.0.0.1:8080", origin)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_safe_methods_may_come_from_anywhere(method: str):
    door.check_source(method, "evil.example", "http://evil.example", frozenset())


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "10.1.2.3", "yard.lan:80", "yard.lan."]
)
def test_our_own_names_may(host: str):
    door.check_source("POST", host, None, {"yard.lan", "other.lan"})
    door.check_source("POST", host, f"http://{host}", {"yard.lan"})


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8080", "127.0.0.1.nip.io", "x#", "", None, "[::1", "yard.lan@evil"]
)
def test_a_rebound_name_changes_nothing(host: str | None):
    with pytest.raises(Forbidden, match="MODELYARD_HOSTS"):
        door.check_source("POST", host, f"http://{host}" if host else None, {"yard.lan"})


def test_any_name_may_be_allowed():
    door.check_source("POST", "anything", None, {"*"})
    door.check_source("POST", "anything", None, None)
    door.check_source("POST", "yard.lan", None, {"Yard.LAN"})
