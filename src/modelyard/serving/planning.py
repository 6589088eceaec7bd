"""What to do so that the replicas of one deployment become those that are wanted: a decision from values, nothing more.

`controller` observes, asks `plan`, and applies what it says. Processes, clocks and tables are its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelyard.errors import Crashed, ModelyardError, TimedOut
from modelyard.serving.types import DeploymentState, Health, ReplicaState

# A replica leaves the routes this long before it is asked to end: every gateway has polled the revision by then. Sooner where
# none is connected any more, since they let go of what is not in their routes; asked once each had the time to poll.
DRAIN, LEFT = timedelta(seconds=1.0), timedelta(seconds=0.4)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A release as `plan` needs it. `settled`: all its replicas were ready once."""

    generation: int
    replicas: int
    state: DeploymentState
    retry_at: datetime | None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a replica may take to load, and how long it may hold calls without computing a batch; half of that is how long
    it may not answer. It says so itself where a batch hangs, and sooner: this is for one that does not say anything true."""

    load: timedelta
    work: timedelta = timedelta.max


@dataclass(frozen=True, slots=True)
class Observed:
    """A replica as it is: its row, its process (`pid` None: the executor knows of none), and what it says of itself (None: no
    answer, or not asked). `stuck`: since when it holds calls and computes none, or does not answer; `swollen`: it has grown
    far beyond what it took when it was ready; `served`: it has answered a call; `left`: how long ago it was asked when it said
    that nobody is connected to it (None: it did not); `reason`: what it did that its process was ended for."""

    token: str
    generation: int
    state: ReplicaState
    started: datetime
    changed: datetime
    pid: int | None
    exit: int | None
    alive: bool
    health: Health | None
    stuck: timedelta = timedelta()
    swollen: bool = False
    served: bool = False
    left: timedelta | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    generation: int
    count: int


@dataclass(frozen=True, slots=True)
class Settle:
    """All replicas of a release are ready: nothing older is needed, and nothing is wrong with it any more."""

    generation: int


@dataclass(frozen=True, slots=True)
class MarkReady:
    token: str
    health: Health
    pid: int | None


@dataclass(frozen=True, slots=True)
class MarkLost:
    """`served`: it had answered a call."""

    token: str
    error: ModelyardError
    served: bool = False


@dataclass(frozen=True, slots=True)
class Replace:
    """The replica went with the supervisor that had it: nobody's fault, and no reason to wait."""

    token: str


@dataclass(frozen=True, slots=True)
class Drain:
    token: str


@dataclass(frozen=True, slots=True)
class Stop:
    token: str


@dataclass(frozen=True, slots=True)
class Forget:
    token: str


Action = Start | Settle | MarkReady | MarkLost | Replace | Drain | Stop | Forget


def plan(wanted: Sequence[Wanted], observed: Sequence[Observed], at: datetime, patience: Patience) -> list[Action]:
    """What to do for one deployment. `wanted` are the releases that should run, the stable one first; none: it was undeployed.
    Calls go to these alone: replicas of others only take their place."""
    actions = [action for replica in observed if (action := _judge(replica, at, patience))]
    gone = {action.token for action in actions if isinstance(action, MarkLost | Replace)}
    lost = {action.token for action in actions if isinstance(action, MarkLost)}
    here = [replica for replica in observed if replica.state != ReplicaState.draining and replica.token not in gone]
    known = {release.generation for release in wanted}
    # Whether and when another is started follows from the loss, which is not written down yet: the next look tells.
    waits = {replica.generation for replica in observed if replica.token in lost}
    for release in wanted:
        present = [replica for replica in here if replica.generation == release.generation]
        actions += _fill(release, present, at, release.generation not in waits)
    return actions + [Drain(replica.token) for replica in here if replica.generation not in known]


def _fill(release: Wanted, here: Sequence[Observed], at: datetime, may_start: bool) -> list[Action]:
    """Start what is missing of a release, where that may be: until it is settled no more load at a time than are ready, one at
    least, since they take each other's time. Drain what is too much: first what is swollen, then what is not ready, then the
    youngest."""
    fresh = [replica for replica in here if not replica.swollen]
    ready = [replica for replica in fresh if replica.state == ReplicaState.ready]
    actions: list[Action] = []
    if release.replicas and len(ready) >= release.replicas and (not release.settled or release.retry_at is not None):
        actions.append(Settle(release.generation))
    missing = release.replicas - len(fresh)
    may_start = may_start and release.state != DeploymentState.failed and (release.retry_at is None or release.retry_at <= at)
    starts = missing if release.settled else min(missing, max(1, len(ready)) - (len(fresh) - len(ready)))
    if starts > 0 and may_start:
        actions.append(Start(release.generation, starts))
    if len(ready) >= release.replicas:  # else what is swollen still serves
        kept = sorted(here, key=lambda r: (r.swollen, r.state != ReplicaState.ready, r.started))
        actions += [Drain(replica.token) for replica in kept[release.replicas :]]
    elif missing < 0:
        kept = sorted(fresh, key=lambda r: (r.state != ReplicaState.ready, r.started))
        actions += [Drain(replica.token) for replica in kept[release.replicas :]]
    return actions


def _judge(replica: Observed, at: datetime, patience: Patience) -> Action | None:
    if replica.state == ReplicaState.draining:
        if not replica.alive:
            return Forget(replica.token)
        since = at - replica.changed
        left = replica.left is not None and since - replica.left >= LEFT
        return Stop(replica.token) if left or since >= DRAIN else None
    if replica.state == ReplicaState.distrusted:
        return MarkLost(replica.token, Crashed("The replica told a gateway what no replica tells, and was ended."))
    if replica.health is not None and replica.health.error is not None:
        return MarkLost(replica.token, replica.health.error, replica.served)
    if replica.pid is None:
        return Replace(replica.token)
    if not replica.alive:
        how = "was killed by signal" if (replica.exit or 0) < 0 else "ended with exit"
        told = f"{replica.reason} and was ended." if replica.reason else f"{how} {abs(replica.exit or 0)}; its log may say why."
        return MarkLost(replica.token, Crashed(f"The replica {told}"), replica.served)
    if replica.state == ReplicaState.starting:
        if replica.health is not None and replica.health.state == ReplicaState.ready:
            return MarkReady(replica.token, replica.health, replica.pid)
        if at - replica.started > patience.load:
            return MarkLost(replica.token, TimedOut(f"The replica was not ready within {_seconds(patience.load)}."))
    elif replica.stuck > (patience.work if replica.health is not None else patience.work / 2):
        stuck = TimedOut(f"The replica computed nothing for {_seconds(replica.stuck)} and was ended.")
        return MarkLost(replica.token, stuck, replica.served)
    return None


def _seconds(time: timedelta) -> str:
    return f"{round(time.total_seconds(), 1):g} s"
