"""Makes the replicas that run equal the deployments that are wanted.

`plan` decides, from values; `Controller` observes, asks it, and applies. It holds no state of its own: killed at any line, the
next one finds replicas by their tokens in the database and at the executor, and carries on.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from modelyard.db import Database, Session, bump, now
from modelyard.errors import CallerError, Crashed, Damaged, ModelyardError, TimedOut, Unavailable
from modelyard.jobs.types import Executor, ProcessStatus, ReplicaSpec
from modelyard.serving.logs import Logs
from modelyard.serving.tables import DeploymentRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Health, ReplicaState
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.telemetry import UNEXPECTED, log

_log = log(__name__)
# A replica leaves the routes this long before it is asked to end: every gateway has polled the revision by then.
DRAIN = timedelta(seconds=1.0)
ATTEMPTS = 3
STEADY = timedelta(seconds=30)
BUSY_TICK, IDLE_TICK = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A deployment as `plan` needs it."""

    generation: int
    replicas: int
    state: DeploymentState
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class Observed:
    """A replica as it is: its row, its process (`pid` None: the executor knows of none), and what it says of itself (None: no
    answer)."""

    token: str
    generation: int
    state: ReplicaState
    started: datetime
    changed: datetime
    pid: int | None
    exit: int | None
    alive: bool
    health: Health | None


@dataclass(frozen=True, slots=True)
class Start:
    count: int


@dataclass(frozen=True, slots=True)
class MarkReady:
    token: str
    health: Health
    pid: int | None


@dataclass(frozen=True, slots=True)
class MarkLost:
    token: str
    error: ModelyardError


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


Action = Start | MarkReady | MarkLost | Replace | Drain | Stop | Forget


def plan(wanted: Wanted | None, observed: Sequence[Observed], at: datetime, patience: timedelta) -> list[Action]:
    """What to do for one deployment (None: it was undeployed). Old generations serve until the new one is whole."""
    actions = [action for replica in observed if (action := _judge(replica, at, patience))]
    gone = {action.token for action in actions if isinstance(action, MarkLost | Replace)}
    here = [replica for replica in observed if replica.state != ReplicaState.draining and replica.token not in gone]
    if wanted is None:
        return [*actions, *(Drain(replica.token) for replica in here)]
    current = [replica for replica in here if replica.generation == wanted.generation]
    ready = [replica for replica in current if replica.state == ReplicaState.ready]
    if len(ready) >= wanted.replicas:
        actions += [Drain(replica.token) for replica in here if replica.generation != wanted.generation]
    missing = wanted.replicas - len(current)
    if missing < 0:
        keep_first = sorted(current, key=lambda r: (r.state != ReplicaState.ready, r.started))
        actions += [Drain(replica.token) for replica in keep_first[missing:]]
    elif missing and wanted.state != DeploymentState.failed and (wanted.retry_at is None or wanted.retry_at <= at):
        actions.append(Start(missing))
    return actions


def _judge(replica: Observed, at: datetime, patience: timedelta) -> Action | None:
    if replica.state == ReplicaState.draining:
        if not replica.alive:
            return Forget(replica.token)
        return Stop(replica.token) if at - replica.changed >= DRAIN else None
    if replica.health is not None and replica.health.error is not None:
        return MarkLost(replica.token, replica.health.error)
    if replica.pid is None:
        return Replace(replica.token)
    if not replica.alive:
        how = "was killed by signal" if (replica.exit or 0) < 0 else "ended with exit"
        return MarkLost(replica.token, Crashed(f"The replica {how} {abs(replica.exit or 0)}; its log may say why."))
    if replica.state == ReplicaState.starting:
        if replica.health is not None and replica.health.state == ReplicaState.ready:
            return MarkReady(replica.token, replica.health, replica.pid)
        if at - replica.started > patience:
            return MarkLost(replica.token, TimedOut(f"The replica was not ready within {patience.total_seconds():g} s."))
    return None


def backoff(failures: int) -> timedelta:
    """How long to wait before the next start after so many failures in a row: 0.5 s, doubled, at most a minute."""
    return timedelta(seconds=min(60.0, 0.5 * 2 ** max(0, failures - 1)))


class Controller:
    """The loop. `probe(address)` asks a replica how it is; None where it does not answer."""

    def __init__(
        self, db: Database, artefacts: Artefacts, executor: Executor, settings: Settings, probe: Callable[[str], Health | None]
    ) -> None:
        self._db, self._artefacts, self._executor, self._settings, self._probe = db, artefacts, executor, settings, probe
        self._wake = threading.Event()
        self._told: set[str] = set()
        self._logs = Logs(settings.logs)

    def wake(self) -> None:
        """Look again now: something was deployed or undeployed."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set. A failed tick is logged and tried again."""
        while not stop.is_set():
            try:
                busy = self.tick()
            except Unavailable as error:  # the supervisor was ended, and is about to take this process with it
                _log.warning("the executor did not answer; trying again", error=error.message)
                busy = False
            except Exception:  # noqa: BLE001 - the edge of the process: one bad tick must not end the loop
                UNEXPECTED.labels("controller").inc()
                _log.exception("tick failed")
                busy = False
            self._wake.wait(BUSY_TICK if busy else IDLE_TICK)
            self._wake.clear()

    def tick(self) -> bool:
        """Observe, plan and apply once for every deployment. True while something is on its way."""
        running = self._executor.replicas()
        with self._db.read() as session:
            deployments = {row.id: row for row in session.scalars(select(DeploymentRow))}
            replicas: dict[int, list[ReplicaRow]] = {key: [] for key in deployments}
            for row in session.scalars(select(ReplicaRow)):
                replicas.setdefault(row.deployment, []).append(row)
        known = {row.token for rows in replicas.values() for row in rows}
        self._end_strangers(running, known)
        self._logs.tidy(known | {token for token, status in running.items() if status.exit is None})
        busy = False
        for key, rows in replicas.items():
            deployment = deployments.get(key)
            observed = [self._observe(row, running.get(row.token)) for row in rows]
            wanted = _wanted(deployment) if deployment else None
            for action in plan(wanted, observed, now(), timedelta(seconds=self._settings.replica_timeout)):
                self._apply(action, deployment)
                busy = True
            busy = busy or any(row.state != ReplicaState.ready for row in rows) or bool(deployment and deployment.retry_at)
        return busy

    def _end_strangers(self, running: Mapping[str, ProcessStatus], known: set[str]) -> None:
        for token, status in running.items():
            if token not in known and status.exit is None:
                self._executor.stop_replica(token)

    def _observe(self, row: ReplicaRow, status: ProcessStatus | None) -> Observed:
        alive = status is not None and status.exit is None
        health = self._probe(row.address) if row.state == ReplicaState.starting else None
        pid, exit_code = (status.pid, status.exit) if status else (None, None)
        return Observed(
            row.token, row.generation, ReplicaState(row.state), row.started, row.changed, pid, exit_code, alive, health
        )

    def _apply(self, action: Action, deployment: DeploymentRow | None) -> None:
        match action:
            case Start(count):
                assert deployment is not None
                for _ in range(count):
                    self._start(deployment)
            case Stop(token):
                if token not in self._told:  # once: it ends when the calls it has are answered
                    self._told.add(token)
                    self._executor.stop_replica(token, self._settings.call_timeout)
            case MarkReady(token, health, pid):
                self._change(token, lambda session, row: _ready(session, row, health, pid))
            case MarkLost(token, error):
                self._executor.stop_replica(token)
                self._change(token, lambda session, row: _lost(session, row, error))
                self._tidy(token)
            case Replace(token):
                self._change(token, _replace)
                self._tidy(token)
            case Drain(token):
                self._change(token, _drain)
            case Forget(token):
                self._change(token, lambda session, row: session.delete(row))
                self._tidy(token)

    def _tidy(self, token: str) -> None:
        self._told.discard(token)
        shutil.rmtree(self._settings.run / "replicas" / token, ignore_errors=True)

    def _change(self, token: str, verb: Callable[[Session, ReplicaRow], Any]) -> None:
        """Apply a verb to a replica's row, if it is still there, and tell the gateways."""
        with self._db.begin() as session:
            row = session.get(ReplicaRow, token)
            if row is not None:
                verb(session, row)
                bump(session)

    def _start(self, deployment: DeploymentRow) -> None:
        """Row first, process second: a controller killed in between leaves a row whose process is missing, which is a loss."""
        token = f"r-{secrets.token_hex(6)}"
        address = self._settings.run / "replicas" / token / "replica.sock"
        with self._db.begin() as session:
            current = session.get(DeploymentRow, deployment.id)
            if current is None or current.generation != deployment.generation:
                return
            session.add(_replica(token, current, str(address)))
        try:
            folder = self._artefacts.local(deployment.project, deployment.artefact)
            self._executor.start_replica(
                ReplicaSpec(
                    token,
                    deployment.engine,
                    folder,
                    address,
                    self._logs.path(deployment.project, deployment.name, token),
                    model=f"{deployment.model}@{deployment.version}",
                )
            )
        except (ModelyardError, OSError) as error:
            failure = error if isinstance(error, ModelyardError) else Crashed(f"The replica could not be started: {error}.")
            self._change(token, lambda session, row: _lost(session, row, failure))


def _wanted(row: DeploymentRow) -> Wanted:
    return Wanted(row.generation, row.replicas, DeploymentState(row.state), row.retry_at)


def _replica(token: str, deployment: DeploymentRow, address: str) -> ReplicaRow:
    return ReplicaRow(
        token=token,
        project=deployment.project,
        deployment=deployment.id,
        generation=deployment.generation,
        model=deployment.model,
        version=deployment.version,
        state=ReplicaState.starting,
        address=address,
        started=now(),
        changed=now(),
        signature={},
    )


def _ready(session: Session, row: ReplicaRow, health: Health, pid: int | None) -> None:
    row.state, row.changed, row.signature, row.pid = ReplicaState.ready, now(), dict(health.metadata), pid
    deployment = session.get(DeploymentRow, row.deployment)
    if deployment is not None and deployment.generation == row.generation:
        deployment.state, deployment.error, deployment.retry_at = DeploymentState.ready, None, None
        deployment.signature, deployment.updated = dict(health.metadata), now()


def _replace(session: Session, row: ReplicaRow) -> None:
    session.delete(row)
    deployment = session.get(DeploymentRow, row.deployment)
    if deployment is not None and deployment.state == DeploymentState.ready:
        deployment.state, deployment.updated = DeploymentState.pending, now()


def _drain(session: Session, row: ReplicaRow) -> None:
    row.state, row.changed = ReplicaState.draining, now()


def _lost(session: Session, row: ReplicaRow, error: ModelyardError) -> None:
    """A replica is gone: count it against its deployment, and decide between another try and giving up."""
    session.delete(row)
    deployment = session.get(DeploymentRow, row.deployment)
    if deployment is None or deployment.generation != row.generation:
        return
    was_steady = row.state == ReplicaState.ready and now() - row.changed > STEADY
    deployment.failures = 1 if was_steady else deployment.failures + 1
    hopeless = isinstance(error, CallerError | Damaged)
    others = select(ReplicaRow.token).where(
        ReplicaRow.deployment == row.deployment, ReplicaRow.state == ReplicaState.ready, ReplicaRow.token != row.token
    )
    if row.state != ReplicaState.ready and (hopeless or deployment.failures >= ATTEMPTS):
        deployment.state, deployment.retry_at = DeploymentState.failed, None
    else:
        still = session.scalars(others.limit(1)).first()
        deployment.state = DeploymentState.ready if still else DeploymentState.pending
        deployment.retry_at = now() + backoff(deployment.failures)
    deployment.error, deployment.updated = error.message, now()
    _log.warning("replica lost", deployment=deployment.name, token=row.token, code=error.code, error=error.message)
