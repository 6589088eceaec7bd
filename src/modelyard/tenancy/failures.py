"""The last place an error passes in control: every failure leaves in one JSON shape, with no path, SQL or traceback in it.

What the web framework itself refuses (no such path, wrong method) is told only to callers with a valid key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from modelyard.errors import Forbidden, Internal, Invalid, ModelyardError, NotFound, OurError, TooLarge, Unavailable
from modelyard.metrics import UNEXPECTED
from modelyard.telemetry import log
from modelyard.tenancy import door
from modelyard.tenancy.router import authorise
from modelyard.tenancy.types import Scope

_LOG = log(__name__)
_SHOWN = 5  # validation errors named in one message


def install(app: FastAPI) -> None:
    """Answer every failure of this app in our shape. Call it once, when the app is made."""
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    handlers: dict[type[Exception], Any] = {
        ModelyardError: _ours,
        RequestValidationError: _invalid,
        HTTPException: _refused,
        OperationalError: _database,
        PoolExhausted: _database,
        Exception: _unexpected,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


def answer(error: ModelyardError, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer of an error."""
    return JSONResponse(door.body(error), status or door.status(error), {**door.headers(error), **(headers or {})})


async def _ours(request: Request, error: ModelyardError) -> Response:
    if isinstance(error, OurError):
        _LOG.warning("failed", code=error.code, message=error.message, method=request.method)
    return answer(error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    told = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in found[:_SHOWN]]
    more = f" … and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return answer(Invalid(f"The request is not valid: {'; '.join(told)}{more}."))


async def _refused(request: Request, error: HTTPException) -> Response:
    """What the framework raises by itself."""
    if error.status_code in (404, 405):
        try:
            await run_in_threadpool(authorise, request, Scope.infer)
        except ModelyardError as refused:
            return answer(refused)
    return answer(_named(error, request), error.status_code, error.headers)


def _named(error: HTTPException, request: Request) -> ModelyardError:
    match error.status_code:
        case 404:
            return NotFound("There is no such path; GET /api/openapi.json lists those there are.")
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return Invalid(f"This path does not take {request.method}; it takes {allowed}.")
        case 403:
            return Forbidden(error.detail)
        case 413:
            return TooLarge("The body is larger than this path takes.")
        case status if status < 500:
            return Invalid(error.detail)
    return Internal()


async def _database(request: Request, error: Exception) -> Response:
    _LOG.error("database", exc_info=error)
    if "disk is full" in str(error):
        return answer(Unavailable("The disk of the database is full, so nothing was changed: free some space, then try again."))
    return answer(Unavailable("The database does not answer; try again shortly."))


async def _unexpected(request: Request, error: Exception) -> Response:
    UNEXPECTED.labels("control").inc()
    _LOG.error("unexpected", exc_info=error)
    return answer(Internal())
