"""Makes the replicas that run equal the deployments that are wanted.

`planning` decides what is started and ended, `scaling` how much is wanted, `verdict` what becomes of a release on trial;
`Controller` observes, asks them, and applies. It holds no state that matters: killed at any line, the next one finds replicas
by their tokens in the database and at the executor, and carries on.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select

from modelyard.db import Database, Session, bump, now
from modelyard.errors import CallerError, Crashed, Damaged, ModelyardError, Unavailable
from modelyard.jobs.types import Executor, ProcessStatus, ReplicaSpec
from modelyard.serving import releases
from modelyard.serving.logs import Logs
from modelyard.serving.observations import total
from modelyard.serving.planning import (
    Action,
    Drain,
    Forget,
    MarkLost,
    MarkReady,
    Patience,
    Replace,
    Settle,
    Start,
    Stop,
    Wanted,
    backoff,
    plan,
)
from modelyard.serving.scaling import Demand, scale
from modelyard.serving.space import Space
from modelyard.serving.tables import DeploymentRow, ObservationRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Health, ReplicaState
from modelyard.serving.verdict import judge
from modelyard.serving.watch import Watch
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.telemetry import UNEXPECTED, log
from modelyard.tenancy.ledger import audit

_log = log(__name__)
ATTEMPTS = 3
STEADY = timedelta(seconds=30)
BUSY_TICK, IDLE_TICK = 0.05, 1.0


class Controller:
    """The loop. `probe(address)` asks a replica how it is; None where it does not answer."""

    def __init__(
        self, db: Database, artefacts: Artefacts, executor: Executor, settings: Settings, probe: Callable[[str], Health | None]
    ) -> None:
        self._db, self._artefacts, self._executor, self._settings = db, artefacts, executor, settings
        self._wake = threading.Event()
        self._told: set[str] = set()
        self._logs = Logs(settings.logs)
        self._watch = Watch(probe)
        self._space = Space(db, artefacts, settings, executor.machines)
        self._patience = Patience(timedelta(seconds=settings.replica_timeout), timedelta(seconds=settings.call_timeout))

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
            known = {(row.deployment, row.generation): row for row in session.scalars(select(ReleaseRow))}
            replicas: dict[int, list[ReplicaRow]] = {key: [] for key in deployments}
            for row in session.scalars(select(ReplicaRow)):
                replicas.setdefault(row.deployment, []).append(row)
        here = [row for rows in replicas.values() for row in rows]
        tokens = {row.token for row in here}
        self._end_strangers(running, tokens)
        self._logs.tidy(tokens | {token for token, status in running.items() if status.exit is None})
        self._readdress(here, running)
        self._watch.look(here)
        busy = False
        for key, rows in replicas.items():
            deployment = deployments.get(key)
            releases_of = {generation: row for (id_, generation), row in known.items() if id_ == key}
            observed = [self._watch.observed(row, running.get(row.token)) for row in rows]
            for action in plan(_wanted(deployment, releases_of), observed, now(), self._patience):
                self._apply(action, deployment, releases_of)
                busy = True
            busy = busy or any(row.state != ReplicaState.ready for row in rows)
            if deployment is not None:
                stable = releases_of[deployment.stable]
                busy = busy or bool(stable.retry_at)
                busy = self._scale(deployment, stable, rows) or busy
                if deployment.trial is not None:
                    self._judge(deployment, releases_of[deployment.trial])
        return busy

    def _readdress(self, rows: Sequence[ReplicaRow], running: Mapping[str, ProcessStatus]) -> None:
        """Write down where replicas are reached that are on another machine."""
        for row in rows:
            status = running.get(row.token)
            if status is not None and status.address and status.address != row.address:
                row.address = address = status.address
                self._change(row.token, partial(_move, address))

    def _scale(self, deployment: DeploymentRow, stable: ReleaseRow, rows: Sequence[ReplicaRow]) -> bool:
        """Want as many replicas as what is outstanding asks for. True where that is another number than before."""
        options = releases.options_of(deployment)
        serving = [row for row in rows if row.generation == stable.generation and row.state == ReplicaState.ready]
        if not serving and stable.replicas:
            return False  # it is on its way, or broken: what is asked of it cannot be seen
        tokens = [row.token for row in serving]
        rising, falling, us_a_row = self._watch.load((deployment.id, stable.generation), tokens)
        quiet = (now() - max([deployment.used, *(row.changed for row in serving)])).total_seconds()
        wanted = scale(Demand(stable.replicas, rising, falling, us_a_row, quiet), options)
        if wanted == stable.replicas or (not stable.settled and wanted < stable.replicas):
            return False
        with self._db.begin() as session:
            row = session.get(ReleaseRow, (stable.deployment, stable.generation))
            if row is None or row.replicas != stable.replicas:
                return False
            row.replicas = wanted
            if not wanted:
                row.state = DeploymentState.asleep
            bump(session)
        _log.info("scaled", deployment=deployment.name, replicas=wanted, before=stable.replicas)
        return True

    def _judge(self, deployment: DeploymentRow, tried: ReleaseRow) -> None:
        """End a trial whose replicas cannot load, or that is seen to be worse."""
        with self._db.read() as session:
            asked = select(ObservationRow).where(
                ObservationRow.deployment == tried.deployment, ObservationRow.generation == tried.generation
            )
            evidence = total(session.scalars(asked).all())
        verdict = judge(evidence, releases.policy_of(deployment), str(deployment.trial_kind))
        if tried.state != DeploymentState.failed and not verdict.rolls_back:
            return
        why = verdict.reason if verdict.rolls_back else f"It could not be served: {tried.error}"
        with self._db.begin() as session:
            row = session.get(DeploymentRow, deployment.id)
            if row is None or row.trial != tried.generation:
                return
            releases.end_trial(session, row, f"Rolled back. {why}")
            audit(session, row.project, None, "deployment.rollback", row.name, {"note": row.note})
            bump(session)
        _log.warning("trial rolled back", deployment=deployment.name, version=f"{tried.model}@{tried.version}", why=why)

    def _end_strangers(self, running: Mapping[str, ProcessStatus], known: set[str]) -> None:
        for token, status in running.items():
            if token not in known and status.exit is None:
                self._executor.stop_replica(token)

    def _apply(self, action: Action, deployment: DeploymentRow | None, known: Mapping[int, ReleaseRow]) -> None:
        match action:
            case Start(generation, count):
                assert deployment is not None
                for _ in range(count):
                    self._start(deployment, known[generation])
            case Stop(token):
                if token not in self._told:  # once: it ends when the calls it has are answered
                    self._told.add(token)
                    self._executor.stop_replica(token, self._settings.call_timeout)
            case MarkReady(token, health, pid):
                self._change(token, lambda session, row: _ready(session, row, health, pid))
                self._space.measured(token, health)
            case Settle(generation):
                assert deployment is not None
                self._settle(deployment.id, generation)
            case MarkLost(token, error):
                self._executor.stop_replica(token, 0.0)
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

    def _settle(self, deployment: int, generation: int) -> None:
        with self._db.begin() as session:
            row = session.get(ReleaseRow, (deployment, generation))
            if row is not None:
                row.settled = True
                bump(session)

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

    def _start(self, deployment: DeploymentRow, release: ReleaseRow) -> None:
        """Row first, process second: a controller killed in between leaves a row whose process is missing, which is a loss."""
        if not self._space.make(deployment, release):
            return
        token, threads = f"r-{secrets.token_hex(6)}", self._space.threads(deployment, release)
        address = self._settings.run / "replicas" / token / "replica.sock"
        with self._db.begin() as session:
            current = session.get(ReleaseRow, (release.deployment, release.generation))
            if current is None or session.get(DeploymentRow, deployment.id) is None:
                return
            row = _replica(token, deployment.project, current, str(address))
            row.threads = threads
            session.add(row)
        try:
            folder = self._artefacts.local(deployment.project, release.artefact)
            self._executor.start_replica(
                ReplicaSpec(
                    token,
                    release.engine,
                    folder,
                    address,
                    self._logs.path(deployment.project, deployment.name, token),
                    threads=threads,
                    model=f"{release.model}@{release.version}",
                    settings=self._space.settings(release),
                    group=f"{deployment.project}/{deployment.name}",
                )
            )
        except (ModelyardError, OSError) as error:
            failure = error if isinstance(error, ModelyardError) else Crashed(f"The replica could not be started: {error}.")
            self._change(token, lambda session, row: _lost(session, row, failure))


def _wanted(row: DeploymentRow | None, known: Mapping[int, ReleaseRow]) -> list[Wanted]:
    """The releases that should run: the stable one, the one before it while that is not whole, one on trial."""
    if row is None:
        return []
    stable = known[row.stable]
    asked = [stable]
    if not stable.settled and row.previous is not None:
        asked.append(known[row.previous])
    if row.trial is not None:
        asked.append(known[row.trial])
    return [Wanted(one.generation, one.replicas, DeploymentState(one.state), one.retry_at, one.settled) for one in asked]


def _replica(token: str, project: str, release: ReleaseRow, address: str) -> ReplicaRow:
    return ReplicaRow(
        token=token,
        project=project,
        deployment=release.deployment,
        generation=release.generation,
        model=release.model,
        version=release.version,
        state=ReplicaState.starting,
        address=address,
        started=now(),
        changed=now(),
        signature={},
    )


def _release(session: Session, row: ReplicaRow) -> ReleaseRow | None:
    return session.get(ReleaseRow, (row.deployment, row.generation))


def _ready(session: Session, row: ReplicaRow, health: Health, pid: int | None) -> None:
    row.state, row.changed, row.signature, row.pid = ReplicaState.ready, now(), dict(health.metadata), pid
    release = _release(session, row)
    if release is not None:
        release.state, release.error, release.retry_at = DeploymentState.ready, None, None
        release.signature = dict(health.metadata)


def _replace(session: Session, row: ReplicaRow) -> None:
    session.delete(row)
    release = _release(session, row)
    if release is not None and release.state == DeploymentState.ready:
        release.state = DeploymentState.pending


def _move(address: str, session: Session, row: ReplicaRow) -> None:
    row.address = address


def _drain(session: Session, row: ReplicaRow) -> None:
    row.state, row.changed = ReplicaState.draining, now()


def _lost(session: Session, row: ReplicaRow, error: ModelyardError) -> None:
    """A replica is gone: count it against its release, and decide between another try and giving up."""
    session.delete(row)
    release = _release(session, row)
    if release is None:
        return
    was_steady = row.state == ReplicaState.ready and now() - row.changed > STEADY
    release.failures = 1 if was_steady else release.failures + 1
    hopeless = isinstance(error, CallerError | Damaged)
    others = select(ReplicaRow.token).where(
        ReplicaRow.deployment == row.deployment,
        ReplicaRow.generation == row.generation,
        ReplicaRow.state == ReplicaState.ready,
        ReplicaRow.token != row.token,
    )
    if row.state != ReplicaState.ready and (hopeless or release.failures >= ATTEMPTS):
        release.state, release.retry_at = DeploymentState.failed, None
    else:
        still = session.scalars(others.limit(1)).first()
        release.state = DeploymentState.ready if still else DeploymentState.pending
        release.retry_at = now() + backoff(release.failures)
    release.error = error.message
    _log.warning("replica lost", model=f"{row.model}@{row.version}", token=row.token, code=error.code, error=error.message)
