"""The gateway's one way for every door: access → grant → route → settle.

`http` and `front` call it. It holds keys and routes in memory (swapped whole by `follower`), never decodes a tensor, and counts
a call before its answer is written. It knows no table, no database and no model library.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import httptools

from modelyard.errors import ModelyardError, NotFound, TooLarge, Unauthorized, Unavailable, not_found
from modelyard.serving import coding
from modelyard.serving.doors import DOORS, Door
from modelyard.serving.follower import Done, Follower, State
from modelyard.serving.frames import CallFrame, Usage
from modelyard.serving.meter import Identity, Meters, Slot
from modelyard.serving.metrics import CallMetrics, Cell
from modelyard.serving.router import Group, Router, Underway
from modelyard.serving.types import DeploymentState, Envelope, Route
from modelyard.settings import Settings
from modelyard.tenancy.access import KeyRing, token_of
from modelyard.tenancy.types import Principal, Scope

Credentials = tuple[tuple[bytes, bytes], ...]
CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
# An admission is decided anew this often: a key that expires is refused within it, besides the key ring's own second.
_TRUSTED = 0.5
UNSEEN = 2.0  # seconds without a look at the database before it counts as gone
_MOST_ADMISSIONS = 20_000
# Bodies under way may take this many times the largest body, all together.
_BODIES = 8
# A body up to this size takes no room from the others.
SMALL = 64 << 10
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Admission:
    """The verdict on a request line and its key, with all that is found on the way; shared by calls that look the same."""

    __slots__ = ("cell", "door", "envelope", "group", "principal", "route", "slot", "until")

    def __init__(
        self,
        principal: Principal,
        envelope: Envelope,
        route: Route,
        door: Door,
        group: Group,
        slot: Slot,
        cell: Cell,
        until: float,
    ) -> None:
        self.principal, self.envelope, self.route, self.door = principal, envelope, route, door
        self.group, self.slot, self.cell, self.until = group, slot, cell, until


class Gateway:
    """Every method runs on the event loop's thread."""

    def __init__(self, keyring: KeyRing, routes: Iterable[Route], router: Router, meters: Meters, settings: Settings) -> None:
        self.keyring, self.router, self.settings = keyring, router, settings
        self.metrics = CallMetrics(self._depths)
        self.body_limit = settings.body_limit
        self.small = min(SMALL, settings.body_limit)
        self._meters = meters
        self._doors: Sequence[Door] = [DOORS.get(name) for name in DOORS]
        self.headers: Mapping[bytes, str] = {
            h.encode(): h for h in coding.HEADERS.union(*(door.headers for door in self._doors))
        }
        self._routes: dict[tuple[str, str], Route] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._admissions: dict[tuple[bytes, Credentials], Admission] = {}
        self._follower: Follower | None = None
        self._control: Callable[[], float] = lambda: 0.0
        self._bodies = _BODIES * settings.body_limit
        self._ids, self._id = secrets.token_hex(8), 0
        self._set_routes(routes)

    # What the gateway knows

    def follow(self, follower: Follower) -> None:
        """Serve only while `follower` sees the database, and for the grace after it."""
        self._follower = follower

    def heed(self, control: Callable[[], float]) -> None:
        """Serve only while control answers, and for the grace after it; `control` tells the seconds since it did."""
        self._control = control

    def apply(self, state: State) -> None:
        """Know exactly this from now on."""
        self.keyring.replace(state.keys)
        self._set_routes(state.routes)

    def _set_routes(self, routes: Iterable[Route]) -> None:
        self._routes = {(route.project, route.deployment): route for route in routes}
        self._groups = {name: self.router.group(route.endpoints) for name, route in self._routes.items()}
        self.router.keep([endpoint for route in self._routes.values() for endpoint in route.endpoints])
        self._admissions.clear()

    def routes(self, project: str) -> list[Route]:
        """The deployments a project may call, by name."""
        return sorted((r for r in self._routes.values() if r.project == project), key=lambda r: r.deployment)

    def _depths(self) -> list[tuple[str, str, int]]:
        return [(*name, sum(link.depth for link in group.links)) for name, group in self._groups.items()]

    def refresh(self, done: Done) -> None:
        """Look at the database now, and call `done` with whether it was seen: somebody named a key or a deployment that is not
        known yet. A database that is gone is not waited for."""
        if self._follower is None:
            done(True)
        elif not self.sees_database:
            done(False)
        else:
            self._follower.refresh(done)

    def check_open(self) -> None:
        """Raises `Unavailable` once the database or control was gone for longer than the grace: closed, not open."""
        if self._follower is not None and self._follower.age > self.settings.grace:
            raise Unavailable("The gateway cannot see the database, so it cannot tell who may call; try again shortly.")
        if self._control() > self.settings.grace:
            raise Unavailable("The control process is gone, so nobody could stop or correct what is served; try again shortly.")

    @property
    def sees_database(self) -> bool:
        """Whether the database was seen a moment ago."""
        return self._follower is None or self._follower.age < UNSEEN

    # Access and route

    def principal(self, credentials: Credentials, scope: Scope = Scope.infer) -> Principal:
        """Who asks. Raises `Unauthorized`, `Forbidden` or `Unavailable`."""
        self.check_open()
        principal = self.keyring.verify(_token(credentials), time.time())
        KeyRing.require(principal, scope)
        return principal

    def after_look(self, refusal: ModelyardError, credentials: Credentials, seen: bool) -> ModelyardError:
        """What a refusal is once a look was asked for: a key or deployment that the memory does not know may be there all the
        same, unless the database was `seen`."""
        if seen or not (isinstance(refusal, NotFound) or (isinstance(refusal, Unauthorized) and self._is_strange(credentials))):
            return refusal
        return Unavailable("The gateway cannot see the database, and does not know this key or deployment; try again shortly.")

    def _is_strange(self, credentials: Credentials) -> bool:
        """Whether these are a key, but none that is known."""
        try:
            return not self.keyring.knows(_token(credentials))
        except Unauthorized:
            return False

    def route(self, project: str, deployment: str, version: str | None) -> Route:
        """The deployment a project means. Raises `NotFound`, saying what exists."""
        route = self._routes.get((project, deployment))
        if route is None:
            raise not_found("deployment", deployment[:100], (name for owner, name in self._routes if owner == project))
        if version is not None and version != route.version:
            raise NotFound(f"Deployment '{deployment}' serves no version '{version[:30]}'; it serves '{route.version}'.")
        return route

    def admit(self, url: bytes, credentials: Credentials, now: float) -> Admission | None:
        """Whether a POST of `url` is a call, and may be made; None where no door answers there. `now` is a time.time()."""
        admission = self._admissions.get((url, credentials))
        if admission is not None and now < admission.until:
            return admission
        for door in self._doors:
            envelope = door.envelope(b"POST", _path(url))
            if envelope is not None:
                return self._admit(url, credentials, door, envelope, now)
        return None

    def _admit(self, url: bytes, credentials: Credentials, door: Door, envelope: Envelope, now: float) -> Admission:
        principal = self.principal(credentials)
        route = self.route(principal.project, envelope.deployment, envelope.version)
        check_ready(route)
        name = (route.project, route.deployment)
        model = f"{route.model}@{route.version}"
        slot = self._meters.slot(Identity(principal.project, principal.key, route.deployment, model))
        cell = self.metrics.cell(*name, route.version)
        admission = Admission(principal, envelope, route, door, self._groups[name], slot, cell, now + _TRUSTED)
        if len(self._admissions) >= _MOST_ADMISSIONS:
            self._admissions.clear()
        self._admissions[url, credentials] = admission
        return admission

    def door(self, url: bytes) -> Door:
        """The door in whose manner a refused request is answered."""
        path = _path(url)
        return next((door for door in self._doors if door.envelope(b"POST", path) is not None), self._doors[0])

    # Grant, send, settle

    def call_id(self, given: bytes | None) -> str:
        """The request's own id where it is a printable word of at most 128 characters, else a fresh one."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        self._id += 1
        return f"{self._ids}{self._id:08x}"

    def send(self, call: Underway, admission: Admission, head: dict[str, str], body: bytes | bytearray, began: float) -> None:
        """Send a call on its way. Every grant is without limit for now: budgets come with leases."""
        route, envelope = admission.route, admission.envelope
        deadline = began + self.settings.call_timeout
        call.frame = CallFrame(
            self.router.number(),
            route.project,
            envelope.deployment,
            route.version,
            envelope.door,
            envelope.verb,
            deadline,
            None,
            head,
            cast(bytes, body),  # the encoder takes either
        )
        call.group, call.link, call.retried = admission.group, None, False
        self.router.send(call)

    def settle(
        self, admission: Admission, usage: Usage, code: int, bytes_in: int, bytes_out: int, seconds: float, calls: int = 1
    ) -> None:
        """Count a call; to be called before its answer is written. With `calls` 0 only what it used is added: it was answered
        as late before."""
        failed = calls if code >= 400 else 0
        admission.slot.add(calls, failed, usage.units, usage.cpu_us, bytes_in, bytes_out)
        if calls:
            admission.cell.count(code, seconds)

    def reserve(self, size: int) -> None:
        """Room for a body of a call under way. Raises `Unavailable` where bodies already take all there is."""
        if size > self._bodies:
            raise Unavailable("Too many large requests are under way; try again shortly.")
        self._bodies -= size

    def release(self, size: int) -> None:
        self._bodies += size


def check_ready(route: Route) -> None:
    """Raises `Unavailable` unless a replica serves the deployment."""
    if route.state == DeploymentState.ready and route.endpoints:
        return
    if route.state == DeploymentState.failed:
        why = f": {route.error}" if route.error else "; its owner can see why"
        raise Unavailable(f"Deployment '{route.deployment}' has failed{why}")
    raise Unavailable(f"Deployment '{route.deployment}' is not ready yet; try again shortly.")


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {limit} bytes; send it in parts, or images in a denser form.")


def _token(credentials: Credentials) -> str:
    return token_of(
        [value for name, value in credentials if name == b"authorization"],
        [value for name, value in credentials if name == b"x-api-key"],
    )


def _path(url: bytes) -> bytes:
    """The path of a request target, absolute form included, as it was sent."""
    if not url.startswith(b"/"):
        try:
            return bytes(httptools.parse_url(url).path or b"")
        except httptools.HttpParserInvalidURLError:
            return b""
    return url.partition(b"?")[0]
