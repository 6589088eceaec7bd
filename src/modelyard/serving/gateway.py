"""The gateway's one way for every door: access → grant → route → settle.

`http` and `front` call it. It holds keys and routes in memory (swapped whole by `follower`), never decodes a tensor, and counts
a call before its answer is written. It knows no table, no database and no model library.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import httptools
import msgspec

from modelyard.errors import Asleep, Internal, ModelyardError, NotFound, TooLarge, Unauthorized, Unavailable, not_found
from modelyard.serving import coding
from modelyard.serving.admission import Admission, Credentials, Head, Waiter
from modelyard.serving.cache import Cache
from modelyard.serving.copies import COMPARE, copied_head
from modelyard.serving.doors import DOORS, Door, Envelope
from modelyard.serving.follower import Done, Follower, State
from modelyard.serving.frames import CallFrame, Usage
from modelyard.serving.meter import Identity, Meters
from modelyard.serving.metrics import CallMetrics, Labels
from modelyard.serving.quotas import Quotas, take
from modelyard.serving.router import Group, Link, Router, Underway
from modelyard.serving.sleepers import Sleepers
from modelyard.serving.tally import Tally
from modelyard.serving.traces import Traces
from modelyard.serving.trials import COPIES, LARGEST, Comparison, Mirror
from modelyard.serving.types import DeploymentState, Route, Seen, Trial
from modelyard.settings import Settings
from modelyard.tenancy.access import KeyRing, token_of
from modelyard.tenancy.types import Principal, Scope

CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
# An admission is decided anew this often: a key that expires is refused within it, besides the key ring's own second.
_TRUSTED = 0.5
UNSEEN = 2.0  # seconds without a look at the database before it counts as gone
_MOST_ADMISSIONS = 20_000
_OVERLOADED = 429  # says nothing of a release: it was asked for more than it can do
# Bodies and answers under way may take this many times the largest body, all together.
_BODIES = 8
# A body, or an answer, up to this size takes no room from the others.
SMALL = 64 << 10
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Gateway:
    """Every method runs on the event loop's thread."""

    def __init__(self, keyring: KeyRing, routes: Iterable[Route], router: Router, meters: Meters, settings: Settings) -> None:
        self.keyring, self.router, self.settings = keyring, router, settings
        self.metrics = CallMetrics(self._depths)
        self.tally = Tally(self._standing)
        router.told = self.tally.told
        self.body_limit = settings.body_limit
        self.small = min(SMALL, settings.body_limit)
        self._meters = meters
        self._doors: Sequence[Door] = [DOORS.get(name) for name in DOORS]
        forwarded = coding.HEADERS.union({"traceparent"}, *(door.headers for door in self._doors))
        self.headers: Mapping[bytes, str] = {header.encode(): header for header in forwarded}
        self._routes: dict[tuple[str, str], Route] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._admissions: dict[tuple[bytes, Credentials], Admission] = {}
        self._comparisons: dict[tuple[int, int, int], Comparison] = {}
        self.cache = Cache(settings.cache_bytes)
        self.sleepers = Sleepers()
        self._quotas = Quotas()
        self.traces = Traces(settings.logs / "spans.jsonl", settings.trace_sample)
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
        self._quotas.know(state.keys, state.quotas, time.time())
        self._set_routes(state.routes)
        self.look_after_sleepers()

    def look_after_sleepers(self) -> None:
        """Let calls go on whose deployment is awake, and ask for those that sleep."""
        self.sleepers.look(self._routes.get)

    def _set_routes(self, routes: Iterable[Route]) -> None:
        routes_before, groups_before = self._routes, self._groups
        self._routes = {(route.project, route.deployment): route for route in routes}
        self._groups = {name: self.router.group(route.endpoints) for name, route in self._routes.items()}
        for name, group in groups_before.items():
            now = self._routes.get(name)
            if now is not None and (now.model, now.version) == (routes_before[name].model, routes_before[name].version):
                group.newer = self._groups[name]
        trials = [route.trial for route in self._routes.values() if route.trial is not None]
        known = self._comparisons
        self._comparisons = {key: known.get(key) or Comparison(trial, self._ids) for trial in trials if (key := trial.key)}
        tried = [endpoint for trial in trials for endpoint in trial.endpoints]
        self.router.keep([*tried, *(endpoint for route in self._routes.values() for endpoint in route.endpoints)])
        for name, route in self._routes.items():
            known_as: dict[str, list[str]] = {}
            answering = [(route.called(None), route.endpoints)]
            if route.trial is not None:
                answering.append((route.called(route.trial), route.trial.endpoints))
            for version, endpoints in answering:
                known_as.setdefault(version, []).extend(endpoint.token for endpoint in endpoints)
            for version, tokens in known_as.items():
                self.tally.know((*name, version), tokens)
        self._admissions.clear()

    def routes(self, project: str) -> list[Route]:
        """The deployments a project may call, by name."""
        return sorted((r for r in self._routes.values() if r.project == project), key=lambda r: r.deployment)

    def _serving(self) -> Iterator[tuple[Labels, Sequence[Link]]]:
        """The replicas of every release that calls go to: a deployment's stable one, and the one on trial."""
        for name, route in self._routes.items():
            yield (*name, route.called(None)), self._groups[name].links
            if route.trial is not None:
                yield (*name, route.called(route.trial)), self.router.group(route.trial.endpoints).links

    def _depths(self) -> Mapping[Labels, int]:
        depths: dict[Labels, int] = {}
        for labels, links in self._serving():
            depths[labels] = depths.get(labels, 0) + sum(link.depth for link in links)
        return depths

    def _standing(self) -> list[tuple[Labels, str]]:
        """The state of every replica, by whose it is."""
        return [(labels, link.state) for labels, links in self._serving() for link in links]

    def refresh(self, done: Done) -> None:
        """Look at the database now, and call `done` with whether it was seen: somebody named a key or a deployment that is not
        known yet. A database that is gone is not waited for."""
        if self._follower is None:
            done(True)
        elif not self.sees_database:
            done(False)
        else:
            self._follower.refresh(done)

    def wait(self, refusal: ModelyardError | None, call: Waiter, done: Done) -> None:
        """Call `done` once what was refused, if it was, may be looked at again: as the database is, or the deployment awake."""
        if isinstance(refusal, Asleep) and isinstance(refusal.of, Route):
            call.leave = self.sleepers.hold(refusal.of, call.credentials, self._left(call.began), lambda: done(True))
        else:
            self.refresh(done)

    def may_wait(self, refusal: ModelyardError, call: Waiter) -> bool:
        """Whether a call so refused may wait: of those whose deployment sleeps only so many are held."""
        sleeps = refusal.of if isinstance(refusal, Asleep) else None
        return not isinstance(sleeps, Route) or self.sleepers.room(sleeps, call.credentials)

    def may_wake(self, refusal: ModelyardError, call: Waiter) -> bool:
        """Whether a call may wait for its deployment to wake."""
        return isinstance(refusal, Asleep) and self._left(call.began) > 0 and self.may_wait(refusal, call)

    def _left(self, began: float) -> float:
        return began + self.settings.call_timeout - time.time()

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
        if version is not None and version not in (*route.versions, route.reference) and not route.tries(version):
            raise NotFound(f"Deployment '{deployment}' serves no version '{version[:30]}'; it serves '{route.version}'.")
        return route

    def admit(self, url: bytes, credentials: Credentials, now: float, paid: bool = False) -> Admission | None:
        """Whether a POST of `url` is a call, and may be made now, which takes it from its quotas unless it was `paid` before;
        None where no door answers there. `now` is a time.time()."""
        admission = self._admissions.get((url, credentials))
        if admission is None or now >= admission.until:
            admission = self._admit(url, credentials, now)
            if admission is None:
                return None
        if admission.buckets is not None and not paid:
            take(admission.buckets, now)
        return admission if admission.canary is None else admission.turn()

    def _admit(self, url: bytes, credentials: Credentials, now: float) -> Admission | None:
        door, envelope = self._asked(url)
        if envelope is None:
            return None
        principal = self.principal(credentials)
        route = self.route(principal.project, envelope.deployment, envelope.version)
        admission = self._admission(principal, envelope, route, door, now + _TRUSTED)
        admission.buckets = self._quotas.of(principal)
        if len(self._admissions) >= _MOST_ADMISSIONS:
            self._admissions.clear()
        self._admissions[url, credentials] = admission
        return admission

    def _admission(self, principal: Principal, envelope: Envelope, route: Route, door: Door, until: float) -> Admission:
        trial, version = route.trial, envelope.version
        if route.tries(version):  # asked for by its number, it is no trial
            return self._to(principal, envelope, route, door, until, trial)
        check_ready(route)
        admission = self._to(principal, envelope, route, door, until, None)
        admission.cache = self.cache if route.cache else None
        if trial is None or not trial.endpoints or version is not None:
            return admission
        comparison = admission.comparison = self._comparisons[trial.key]
        other = self._to(principal, envelope, route, door, until, trial)
        admission.outcome = comparison.stable
        if comparison.is_shadow:
            admission.shadow = other
        else:
            admission.canary, other.outcome = other, comparison.tried
        return admission

    def _to(
        self, principal: Principal, envelope: Envelope, route: Route, door: Door, until: float, trial: Trial | None
    ) -> Admission:
        """An admission to the stable release, or to the one on trial."""
        name, to = (route.project, route.deployment), trial or route
        slot = self._meters.slot(Identity(principal.project, principal.key, route.deployment, to.reference))
        group = self._groups[name] if trial is None else self.router.group(trial.endpoints)
        cell = self.metrics.cell(*name, route.called(trial))
        return Admission(principal, envelope, route, door, group, slot, cell, until, to.version)

    def door(self, url: bytes) -> Door:
        """The door in whose manner a refused request is answered."""
        return self._asked(url)[0]

    def _asked(self, url: bytes) -> tuple[Door, Envelope | None]:
        """The door that answers there, and what is asked of it; the first door and None where none does."""
        path = _path(url)
        found = ((door, door.envelope(b"POST", path)) for door in self._doors)
        return next(((door, envelope) for door, envelope in found if envelope is not None), (self._doors[0], None))

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
            admission.version,
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
        self,
        admission: Admission,
        usage: Usage,
        code: int,
        bytes_in: int,
        bytes_out: int,
        seconds: float,
        calls: int = 1,
        *,
        compared: bool = True,
    ) -> None:
        """Count a call; to be called before its answer is written. With `calls` 0 only what it used is added: it was answered
        as late before. `compared`: it says something of the release, since a replica answered it."""
        failed = calls if code >= 400 else 0
        admission.slot.add(calls, failed, usage.units, usage.cpu_us, bytes_in, bytes_out)
        if calls:
            admission.cell.count(code, seconds)
            if compared and admission.outcome is not None and code != _OVERLOADED:
                admission.outcome(code >= 500, seconds)

    def mirror(self, call: Underway, admission: Admission, answer: bytes | bytearray, head: Head) -> None:
        """Give the shadow a copy of a call that was answered, where it is its turn and there is room. It is metered, too."""
        comparison, shadow, frame = admission.comparison, admission.shadow, call.frame
        assert comparison is not None
        assert shadow is not None
        size = len(frame.data) + len(answer)
        if not comparison.turn() or comparison.copies >= COPIES or size > LARGEST or coding.PACKED in frame.head:
            return
        copy = Mirror(comparison, lambda usage: self.settle(shadow, usage, 200, 0, 0, 0.0, calls=0))
        copy.frame = msgspec.structs.replace(
            frame,
            id=self.router.number(),
            version=shadow.version,
            verb=COMPARE,
            deadline=time.time() + self.settings.call_timeout,
            head=copied_head(frame.head, head, len(answer)),
            data=bytes(frame.data) + answer,
        )
        copy.group, copy.link, copy.retried = shadow.group, None, False
        self.router.send(copy)

    def observed(self) -> list[Seen]:
        """What is new about the releases on trial."""
        return [seen for comparison in list(self._comparisons.values()) if (seen := comparison.news()) is not None]

    def reserve(self, size: int) -> None:
        """Room for a body or an answer of a call under way. Raises `Unavailable` where others already take all there is."""
        if size > self._bodies:
            raise Unavailable("Too many large requests are under way; try again shortly.")
        self._bodies -= size

    def release(self, size: int) -> None:
        self._bodies += size


def check_ready(route: Route) -> None:
    """Raises `Unavailable` unless a replica serves the deployment; `Asleep` where a call would wake one."""
    if route.state == DeploymentState.ready and route.endpoints:
        return
    if route.state == DeploymentState.asleep or route.wakes:
        raise Asleep(f"Deployment '{route.deployment}' sleeps and is not awake yet; try again shortly.", route)
    if route.state == DeploymentState.failed:
        why = f": {route.error}" if route.error else "; its owner can see why"
        raise Unavailable(f"Deployment '{route.deployment}' has failed{why}")
    raise Unavailable(f"Deployment '{route.deployment}' is not ready yet; try again shortly.")


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {limit} bytes; send it in parts, or images in a denser form.")


def too_much(limit: int) -> Internal:
    return Internal(f"The model's answer is larger than {limit} bytes (body_limit); ask for less of it, or for fewer rows.")


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
