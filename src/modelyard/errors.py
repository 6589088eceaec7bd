"""Every error Modelyard raises on purpose, and whose fault each one is.

Rooms raise these, doors translate them: an HTTP status is chosen where HTTP is spoken
(`tenancy/door.py`), never here. The docstring of a class is its default message; `code` is
stable and travels on every wire, so a caller in another process gets the same class back.

    ModelyardError
    ├── CallerError
    │   ├── Invalid
    │   │   └── Unsafe
    │   ├── Unauthorized
    │   ├── Forbidden
    │   ├── NotFound
    │   ├── Conflict
    │   ├── TooLarge
    │   └── RateLimited
    └── OurError
        ├── Unavailable
        │   └── Asleep
        ├── Overloaded
        ├── TimedOut
        ├── Damaged
        ├── Crashed
        └── Internal
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Literal

Fault = Literal["caller", "ours"]


class ModelyardError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    fault: ClassVar[Fault] = "ours"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        super().__init__(self.message)


class CallerError(ModelyardError):
    """The request cannot be carried out as it stands."""

    code = "caller_error"
    fault = "caller"


class Invalid(CallerError):
    """The request is not valid."""

    code = "invalid_request"


class Unsafe(Invalid):
    """The file could run code when it is loaded; it was refused unread."""

    code = "unsafe_file"


class Unauthorized(CallerError):
    """No valid API key was given: send 'Authorization: Bearer my_…'."""

    code = "invalid_api_key"


class Forbidden(CallerError):
    """The API key's scope does not allow this."""

    code = "insufficient_scope"


class NotFound(CallerError):
    """There is no such thing in this project."""

    code = "not_found"


class Conflict(CallerError):
    """The request conflicts with what is there."""

    code = "conflict"


class TooLarge(CallerError):
    """The request is larger than allowed."""

    code = "too_large"


class RateLimited(CallerError):
    """More calls came than the quota allows; try again shortly."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str | None = None, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait  # seconds until the next is allowed


class OurError(ModelyardError):
    """The platform failed to do its part."""

    code = "our_error"


class Unavailable(OurError):
    """Not ready to answer; try again shortly."""

    code = "unavailable"


class Asleep(Unavailable):
    """The deployment sleeps and did not wake in time; try again shortly."""

    code = "asleep"

    def __init__(self, message: str | None = None, of: object = None) -> None:
        super().__init__(message)
        self.of = of  # what sleeps, for who can wake it


class Overloaded(OurError):
    """More is asked than can be answered in time; try again shortly."""

    code = "overloaded"


class TimedOut(OurError):
    """The time allowed for this was used up."""

    code = "timed_out"


class Damaged(OurError):
    """Stored bytes do not match their hash; they were refused."""

    code = "damaged"


class Crashed(OurError):
    """A process ended before its work did."""

    code = "crashed"


class Internal(OurError):
    """An internal error; the log of the process has the details."""

    code = "internal"


def _tree(cls: type[ModelyardError]) -> Iterable[type[ModelyardError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _tree(sub)


def from_wire(code: str, message: str) -> ModelyardError:
    """The error of class `code`, as it was raised in another process; `Internal` for an unknown code."""
    for cls in _tree(ModelyardError):
        if cls.code == code:
            return cls(message)
    return Internal(message)


def not_found(what: str, name: str, existing: Iterable[str], *, newest: int = 0) -> NotFound:
    """A `NotFound` that says what exists and which name is nearest: `what` as in 'model'. With `newest`, so many are shown of
    those that exist, which then come newest first."""
    names = list(existing) if newest else sorted(existing)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    most = newest or 10
    shown = ", ".join(f"'{n}'" for n in names[:most]) + (", …" if len(names) > most else "")
    there = f" {'The newest are' if newest else 'There are'}: {shown}." if names else f" There is no {what} yet."
    return NotFound(f"No {what} '{name}'.{hint}{there}")
