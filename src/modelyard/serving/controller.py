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
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from modelyard.db import Database, Session, bump, now
from modelyard.engines.base import GRAPHS
from modelyard.errors import CallerError, Crashed, Damaged, ModelyardError, Unavailable
from modelyard.jobs.types import Executor, ProcessStatus, ReplicaSpec
from modelyard.metrics import UNEXPECTED
from modelyard.serving import observations, releases
from modelyard.serving.logs import Logs
from modelyard.serving.losses import ATTEMPTS, STEADY, Loss, after
from modelyard.serving.planning import (
    Action,
    Drain,
    Forget,
    MarkLost,
    MarkReady,
    Observed,
    Patience,
    Replace,
    Settle,
    Start,
    Stop,
    plan,
)
from modelyard.serving.scaling import FALLING, RISING, Demand, scale
from modelyard.serving.space import Space
from modelyard.serving.starts import Arrival, Starts
from modelyard.serving.tables import DeploymentRow, ObservationRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Health, ReplicaState, TrialKind
from modelyard.serving.verdict import judge, unsteady
from modelyard.serving.watch import Watch
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.telemetry import log
from modelyard.tenancy.ledger import audit

_log = log(__name__)
BUSY_TICK, IDLE_TICK = 0.05, 1.0
_COURTESY = 5  # niceness of replicas that run users' code, so that the gateway and plain models come first
_STUMBLED = "The controller stumbled over this deployment and goes on with the others; its log says why."


class Controller:
    """The loop. `probe(address)` asks a replica how it is; None where it does not answer."""

    def __init__(
        self, db: Database, artefacts: Artefacts, executor: Executor, settings: Settings, probe: Callable[[str], Health | None]
    ) -> None:
        self._db, self._artefacts, self._executor, self._settings = db, artefacts, executor, settings
        self._wake = threading.Event()
        self._told: set[str] = set()
        self._began = now()
        self._logs = Logs(settings.logs)
        self._watch = Watch(probe)
        self._space = Space(db, artefacts, settings, executor.machines)
        self._starts = Starts(self.wake)
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
        """Observe, plan and apply once for every deployment that is not asleep. True while something is on its way."""
        for arrival in self._starts.come():
            self._arrived(arrival)
        running = self._executor.replicas()
        with self._db.read() as session:
            deployments, known, replicas = releases.astir(session, _STUMBLED)
        here = [row for rows in replicas.values() for row in rows]
        tokens = {row.token for row in here}
        self._end_strangers(running, tokens)
        self._logs.tidy(tokens | {token for token, status in running.items() if status.exit is None})
        self._readdress(here, running)
        self._watch.look(here)
        busy = False
        # Where there is not room for all, who was called first has the first turn.
        for key, rows in sorted(replicas.items(), key=lambda each: _called(deployments.get(each[0]))):
            deployment, releases_of = deployments.get(key), known.get(key, {})
            try:
                busy = self._tend(deployment, releases_of, rows, running) or busy
            except Unavailable as error:  # the store or the executor, for now
                _log.warning("a deployment must wait; trying again", token=rows[0].token if rows else None, error=error.message)
            except Exception as error:  # noqa: BLE001 - the edge of a deployment: one must not stop the others
                UNEXPECTED.labels("controller").inc()
                _log.exception("a deployment could not be tended", error=repr(error)[:500])
                self._note(deployment, _STUMBLED)
            else:
                if deployment is not None and releases_of[deployment.stable].error == _STUMBLED:
                    self._note(deployment, None)
        return busy

    def _tend(
        self,
        deployment: DeploymentRow | None,
        releases_of: Mapping[int, ReleaseRow],
        rows: Sequence[ReplicaRow],
        running: Mapping[str, ProcessStatus],
    ) -> bool:
        """Plan and apply for one deployment. True while something is on its way."""
        busy = any(row.state != ReplicaState.ready for row in rows)
        observed = [self._observed(row, running.get(row.token)) for row in rows]
        for action in plan(releases.wanted(deployment, releases_of), observed, now(), self._patience):
            self._apply(action, deployment, releases_of)
            busy = True
        if deployment is not None:
            stable = releases_of[deployment.stable]
            busy = busy or bool(stable.retry_at)
            busy = self._scale(deployment, releases_of, rows) or busy
            if deployment.trial is not None:
                self._judge(deployment, releases_of[deployment.trial])
        return busy

    def _observed(self, row: ReplicaRow, status: ProcessStatus | None) -> Observed:
        seen = self._watch.observed(row, status)
        if row.token in self._starts and row.state == ReplicaState.starting:  # its time begins with its process
            return replace(seen, pid=0, alive=True, started=now())
        return seen

    def _note(self, deployment: DeploymentRow | None, error: str | None) -> None:
        """Say at a deployment what is wrong with it, which its rows do not tell."""
        with self._db.begin() as session:
            row = session.get(ReleaseRow, (deployment.id, deployment.stable)) if deployment is not None else None
            if row is not None and row.error != error:
                row.error = error
                bump(session)

    def _readdress(self, rows: Sequence[ReplicaRow], running: Mapping[str, ProcessStatus]) -> None:
        """Write down where replicas are reached that are on another machine."""
        for row in rows:
            status = running.get(row.token)
            if status is not None and status.address and status.address != row.address:
                row.address = address = status.address
                self._change(row.token, partial(_move, address))

    def _scale(self, deployment: DeploymentRow, known: Mapping[int, ReleaseRow], rows: Sequence[ReplicaRow]) -> bool:
        """Want as many replicas of the release that answers as what is outstanding asks for, at a canary too, but no fewer
        while another is on its way. True where that is another number than before."""
        options, stable = releases.options_of(deployment), known[deployment.stable]
        ready = [row for row in rows if row.state == ReplicaState.ready]
        release = known[releases.answering(deployment, stable, {row.generation for row in ready})]
        serving = [row for row in ready if row.generation == release.generation]
        if not serving and release.replicas:
            return False  # it is on its way, or broken: what is asked of it cannot be seen
        tokens = [row.token for row in serving]
        load = self._watch.load((deployment.id, release.generation), tokens)
        tried = [row for row in ready if row.generation == deployment.trial]
        if deployment.trial is not None and deployment.trial_kind == TrialKind.canary:
            load = load.beside(self._watch.load((deployment.id, deployment.trial), []), deployment.weight)
        changed = max((row.changed for row in serving), default=deployment.used)
        quiet = (now() - max(deployment.used, changed)).total_seconds()
        whole = len(serving) >= release.replicas and (now() - changed).total_seconds() > RISING
        newest = max(changed, deployment.updated, self._began, *(row.changed for row in tried))
        watched = (now() - newest).total_seconds() > FALLING
        wanted = scale(Demand(release.replicas, quiet, load, whole, watched), options)
        rolling = not stable.settled and (release is stable or stable.error is None)
        if wanted == release.replicas or (rolling and wanted < release.replicas):
            return False
        with self._db.begin() as session:
            if not releases.resize(session, release, wanted):
                return False
        _log.info("scaled", deployment=deployment.name, replicas=wanted, before=release.replicas)
        return True

    def _judge(self, deployment: DeploymentRow, tried: ReleaseRow) -> None:
        """End a trial whose replicas cannot load or are lost again and again, or that is seen to be worse."""
        with self._db.read() as session:
            asked = select(ObservationRow).where(
                ObservationRow.deployment == tried.deployment, ObservationRow.generation == tried.generation
            )
            seen = session.scalars(asked).all()
        policy, kind = releases.policy_of(deployment), str(deployment.trial_kind)
        verdict = judge(observations.total(seen), policy, kind)
        why = verdict.reason if verdict.rolls_back else unsteady(observations.losses(seen), tried.failures, policy, kind)
        if tried.state == DeploymentState.failed and not verdict.rolls_back:
            why = f"It could not be served: {tried.error}"
        if why is None:
            return
        with self._db.begin() as session:
            row = session.get(DeploymentRow, deployment.id)
            if row is None or row.trial != tried.generation:
                return
            releases.end_trial(session, row, f"Rolled back. {why}")
            audit(session, row.project, None, "deployment.rollback", row.name, {"note": row.note})
            bump(session)
        _log.warning("trial rolled back", deployment=deployment.name, version=tried.reference, why=why)

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
                    self._executor.stop_replica(token, self._settings.call_timeout)
                    self._told.add(token)
            case MarkReady(token, health, pid):
                self._change(token, lambda session, row: _ready(session, row, health, pid))
                self._space.measured(token, health)
            case Settle(generation):
                assert deployment is not None
                self._settle(deployment.id, generation)
            case MarkLost(token, error, served):
                self._executor.stop_replica(token, 0.0)
                self._change(token, lambda session, row: _lost(session, row, error, served=served))
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
            if row is not None:  # its replicas may have been there before it was wanted again
                row.settled, row.state, row.error, row.retry_at = True, DeploymentState.ready, None, None
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
        try:
            if not self._space.make(deployment, release):
                return
        except Unavailable as error:  # the store is gone: others' replicas must not wait for it
            self._postpone(release, error)
            return
        token, threads = f"r-{secrets.token_hex(6)}", self._space.threads(deployment, release)
        address = self._settings.run / "replicas" / token / "replica.sock"
        with self._db.begin() as session:
            current = session.get(ReleaseRow, (release.deployment, release.generation))
            if current is None or session.get(DeploymentRow, deployment.id) is None:
                return
            row = releases.replica(token, deployment.project, current, str(address))
            row.threads = threads
            session.add(row)

        def go(folder: Path) -> None:
            self._executor.start_replica(
                ReplicaSpec(
                    token,
                    release.engine,
                    folder,
                    address,
                    self._logs.path(deployment.project, deployment.name, token),
                    threads=threads,
                    model=release.reference,
                    settings=self._space.settings(release),
                    group=f"{deployment.project}/{deployment.name}",
                    memory=self._space.bound(release),
                    nice=0 if release.engine in GRAPHS else _COURTESY,
                )
            )

        self._starts.begin(token, partial(self._artefacts.local, deployment.project, release.artefact), go)

    def _arrived(self, arrival: Arrival) -> None:
        """A replica's artefact is here, or is not to be had: start its process, where it is still wanted."""
        with self._db.begin() as session:
            row = session.get(ReplicaRow, arrival.token)
            if row is None or row.state != ReplicaState.starting:
                return
            row.started = now()
        try:
            if arrival.folder is None:
                raise arrival.error or AssertionError
            arrival.go(arrival.folder)
        except Exception as error:  # noqa: BLE001 - the edge of a start: whatever it was, it is this replica's end
            failure = error if isinstance(error, ModelyardError) else Crashed(f"The replica could not be started: {error}.")
            outage = not isinstance(failure, CallerError | Damaged)
            self._change(arrival.token, lambda session, row: _lost(session, row, failure, outage=outage))

    def _postpone(self, release: ReleaseRow, error: ModelyardError) -> None:
        with self._db.begin() as session:
            row = session.get(ReleaseRow, (release.deployment, release.generation))
            if row is not None:
                row.error, row.retry_at = error.message, now() + after(row.failures, Loss(outage=True)).pause
                bump(session)


def _called(row: DeploymentRow | None) -> float:
    """When a deployment was last called; one that is gone goes first."""
    return row.used.timestamp() if row is not None else 0.0


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


def _lost(session: Session, row: ReplicaRow, error: ModelyardError, *, served: bool = False, outage: bool = False) -> None:
    """A replica is gone, and its release is told what follows."""
    session.delete(row)
    release = _release(session, row)
    if release is None:
        return
    others = select(ReplicaRow.token).where(
        ReplicaRow.deployment == row.deployment,
        ReplicaRow.generation == row.generation,
        ReplicaRow.state == ReplicaState.ready,
        ReplicaRow.token != row.token,
    )
    loss = Loss(
        useful=row.state == ReplicaState.ready and (served or now() - row.changed > STEADY),
        outage=outage,
        hopeless=isinstance(error, CallerError | Damaged),
        others=session.scalars(others.limit(1)).first() is not None,
        proven=bool(release.signature),
    )
    if not outage:
        observations.lost(session, row.deployment, row.generation)
    release.state, release.failures, pause = after(release.failures, loss)
    release.error, release.retry_at = error.message, now() + pause if pause else None
    if release.failures >= ATTEMPTS and not release.settled:
        release.settled = releases.enough(session, release, 0.5)
    _log.warning("replica lost", model=row.reference, token=row.token, code=error.code, error=error.message)
