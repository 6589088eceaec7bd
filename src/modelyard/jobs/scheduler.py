"""The loop that runs jobs: claim → resolve inputs → start the gang → poll → apply. Control runs one, in a thread.

It can be killed at any line: what counts is in the database, written in one transaction a step, fenced by the attempt's token.
The work of a job may be lost and done again; it is never done twice in the books. No process, file or network is touched
inside a transaction. Decisions are elsewhere: who runs in `assign`, what a gang may say in `active`, how it ends in `endings`;
ranks' questions are answered at the `desk`.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from modelyard.db import Database, Session, now
from modelyard.errors import Crashed, Internal, ModelyardError, Unavailable
from modelyard.jobs import endings, queue, records, retention
from modelyard.jobs.active import Active
from modelyard.jobs.assign import Placement, assign
from modelyard.jobs.desk import Desk
from modelyard.jobs.following import Followers
from modelyard.jobs.prepare import prepare
from modelyard.jobs.shares import Shares
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import Executor, Job, State
from modelyard.kinds import JobKind
from modelyard.metrics import UNEXPECTED, Counter
from modelyard.plugins import Registry
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.storage.folders import remove
from modelyard.telemetry import log

_log = log(__name__)
_ENDED = Counter("modelyard_jobs_ended_total", "Attempts of jobs that ended, by how.", ["state"])

# Seconds between two collections of checkpoints that nobody needs.
_COLLECT = 3600.0
# Seconds between two looks at the queue when nothing happens: another control may have written to it.
_LOOK = 0.5
# Seconds after which a cancelled gang is killed from outside; its launcher does so after ten.
_CANCEL_GRACE = 15.0
# Seconds that the launcher of a lost gang waits for the job's next attempt: as long as it pauses at first, and a little.
_PARKED = 10.0


class Scheduler:
    """Runs the jobs of all projects. What takes long is done beside it: inputs are verified and folders removed in one pool,
    outputs and checkpoints stored in another, so that long uploads keep no job from starting."""

    def __init__(
        self,
        db: Database,
        artefacts: Artefacts,
        executor: Executor,
        settings: Settings,
        kinds: Registry[JobKind],
    ) -> None:
        self.followers = Followers()
        self._db = db
        self._artefacts = artefacts
        self._executor = executor
        self._settings = settings
        self._kinds = kinds
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="jobs")
        self._stores = ThreadPoolExecutor(8, thread_name_prefix="stores")
        self._desk = Desk(db, artefacts, executor, kinds, self._stores)
        self._active: dict[str, Active] = {}
        self._parked: dict[str, tuple[Active, float]] = {}  # attempts whose launcher waits for the next, and until when
        self._shares = Shares(settings.job_share_half_life)
        self._notices = queue.Notices()
        self._woken = True
        self._looked, self._collected = 0.0, -_COLLECT

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set and `wake` was called. Gangs end with this process."""
        while not stop.is_set() and not self._attempt(self.recover):
            stop.wait(1.0)
        while not stop.is_set():
            self.tick()
            self._executor.wait(_LOOK)
        self.close()

    def close(self) -> None:
        """End what runs; the next control starts it again."""
        for active in [*self._active.values(), *(active for active, _ in self._parked.values())]:
            for handle in (active.handle, active.instead):
                if handle is not None:
                    handle.kill()
        self._active.clear()
        self._parked.clear()
        self._pool.shutdown(cancel_futures=True)
        self._stores.shutdown(cancel_futures=True)

    def wake(self) -> None:
        """Have the queue looked at now; any thread may call it."""
        self._woken = True
        self._executor.wake()

    def tick(self) -> None:
        """One turn: every running job a step on, then the queue. Raises nothing: one job's trouble is its own."""
        for active in list(self._active.values()):
            self._guard(active)
        for active, until in list(self._parked.values()):
            if time.monotonic() >= until:
                self._release(active.job.id)
        if self._woken or time.monotonic() - self._looked >= _LOOK:
            self._woken, self._looked = False, time.monotonic()
            if self._looked - self._collected >= _COLLECT:
                self._collected = self._looked
                self._pool.submit(self._attempt, self._collect)
            self._attempt(self._look)

    def recover(self) -> None:
        """Take over from a control that is gone: its gangs are ended, their jobs queued again."""
        died = self._executor.end_gangs()
        with self._db.begin() as session:
            self._shares.load(session)
            lost = (JobRow.state.in_((State.starting.value, State.running.value)), JobRow.token.is_not(None))
            for row in session.scalars(select(JobRow).where(*lost)):
                job = records.load(row)
                left = Active.left(job, self._folder(job), endings.charged_us(session, job))
                self._conclude(session, left, died.get(left.token))
            rows = session.scalars(select(JobRow).where(JobRow.id.in_(self._left())))
            known = {row.id: job for row in rows if _forgets(job := records.load(row), job.state)}
        for name, folder in self._left().items():
            # Out of the way first: the job's next attempt makes a folder of the same name while this one is removed.
            aside = folder.rename(folder.with_name(f".{name}.{secrets.token_hex(8)}"))
            self._pool.submit(self._clean, aside, known.get(name))

    def _left(self) -> dict[str, Path]:
        """Folders of jobs on this node, by the job's id; those set aside by an earlier control too."""
        return {folder.name.strip(".").partition(".")[0]: folder for folder in self._settings.jobs.glob("*")}

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Do something that must not end the loop; False where it failed, which is logged and counted."""
        try:
            work()
        except OperationalError as error:
            _log.warning("the database did not answer; trying again", error=str(error.orig))
            return False
        except Unavailable as error:  # the store, or a supervisor that was ended and is about to take this process with it
            _log.warning("what it needs did not answer; trying again", error=error.message)
            return False
        except Exception:  # noqa: BLE001 — the edge of the process: the loop goes on
            UNEXPECTED.labels("scheduler").inc()
            _log.exception("the scheduler failed")
            return False
        return True

    def _guard(self, active: Active) -> None:
        """One job's step; what goes wrong in it ends that job at most."""
        try:
            self._step(active)
        except records.Lost:
            self._drop(active)
        except OperationalError as error:
            _log.warning("the database did not answer; trying again", job=active.job.id, error=str(error.orig))
            if active.ended is not None and not active.storing:
                # Its files are wanted no more, and may be what fills the database's disk.
                self._pool.submit(self._clean, active.folder, None)
        except ModelyardError as error:
            self._condemn(active, error)
        except Exception:  # noqa: BLE001 — the edge of the process: the job fails, the loop goes on
            UNEXPECTED.labels("scheduler").inc()
            _log.exception("a job's step failed", job=active.job.id)
            self._condemn(active, Internal())

    def _step(self, active: Active) -> None:
        if active.handle is None:
            self._begin(active)
            return
        active.take(active.handle.poll())
        self._desk.settle(active)
        self._write(active)
        if active.ended is None and self._desk.serve(active):
            self._woken = True
        if active.ended is not None and not active.storing:
            self._finish(active)
        elif (asked := active.cancelled_at or active.sent_back) is not None and time.monotonic() - asked > _CANCEL_GRACE:
            active.handle.kill()

    def _begin(self, active: Active) -> None:
        """Start the gang once its inputs are there."""
        if active.verdict is not None or active.cancelled_at is not None:
            self._finish(active)
        elif active.preparing is not None and active.preparing.done():
            gang = active.preparing.result()
            try:
                active.handle = self._executor.start_gang(gang, active.instead)
            except Unavailable as error:
                raise Crashed(f"The job could not be started: {error.message}") from error
            active.instead = None

    def _condemn(self, active: Active, error: ModelyardError) -> None:
        """The job ends with this error as soon as its gang has."""
        if active.verdict is None:
            active.verdict = error
            active.questions.clear()
            if active.handle is not None:
                active.handle.kill()
        self._executor.wake()

    def _write(self, active: Active) -> None:
        """What the gang said since, into the database."""
        if not active.said and not active.changes:
            return
        job, changes = active.job, dict(active.changes)
        with self._db.begin() as session:
            state = changes.pop("state", None)
            if state is not None:
                records.evolve(session, job.id, job.token, state, **changes)
            elif changes:
                records.change(session, job.id, job.token, **changes)
            records.append(session, job.id, job.token, active.said)
        active.said.clear()
        active.changes.clear()

    def _finish(self, active: Active) -> None:
        """The gang is gone: write how the attempt ended."""
        with self._db.begin() as session:
            if active.verdict is None and (active.ended or {}).get("ok"):
                kind = self._kinds.get(active.job.kind) if active.job.kind in self._kinds else None
                endings.succeed(session, active, evaluates=kind is not None and kind.evaluates)
                state = State.succeeded
            else:
                state = self._conclude(session, active, active.error or Crashed("The gang ended without saying why."))
        _ENDED.labels(state.value).inc()
        self._drop(active, state)

    def _conclude(self, session: Session, active: Active, error: ModelyardError | None) -> State:
        """Write the end of an attempt that did not succeed; None: nothing is known against its gang, control ended under it."""
        job, abandoned = active.job, error is None
        error = error or Crashed(f"Control ended while the job ran; times it did so far: {job.abandoned + 1}.")
        stopped = bool((active.ended or {}).get("cancelled"))
        if active.cancelled_at is not None or job.cancelling or (stopped and active.sent_back is None):
            endings.fail(session, active, State.cancelled, None)
            return State.cancelled
        if active.sent_back is not None and (stopped or isinstance(error, Crashed)):
            endings.back(session, active)
            return State.queued
        most = self._settings.job_restarts if job.max_restarts is None else job.max_restarts
        if endings.starts_again(job, error, most, abandoned=abandoned, further=active.further):
            rejoins = job.kind in self._kinds and self._kinds.get(job.kind).rejoins
            endings.again(session, active, error, most, abandoned=abandoned, rejoins=rejoins)
            return State.queued
        endings.fail(session, active, State.failed, error)
        return State.failed

    def _drop(self, active: Active, state: State = State.queued) -> None:
        """Let go of an attempt and of its folders; where that left the job done also of its checkpoints."""
        self._active.pop(active.job.id, None)
        self._woken = True
        if state.ended:
            self.followers.wake(active.job.id)
        self._release(active.job.id, whole=state.ended)
        if state is State.queued and _stays(active):
            self._parked[active.job.id] = active, time.monotonic() + _PARKED
            return
        if active.handle is not None and (active.ended is None or active.ended.get("stays")):
            active.handle.kill()
        if active.instead is not None:
            active.instead.kill()
        folder = active.folder.parent if state.ended else active.folder
        ended = active.job if _forgets(active.job, state) else None
        if active.preparing is not None and not active.preparing.done():
            active.preparing.add_done_callback(lambda _: self._clean(folder, ended))
        else:
            self._pool.submit(self._clean, folder, ended)

    def _release(self, job: str, *, whole: bool = False) -> None:
        """Let go of a launcher that waits for an attempt of this job; of its folder too, unless the job's `whole` one goes."""
        active, _ = self._parked.pop(job, (None, 0.0))
        if active is not None and active.handle is not None:
            active.handle.kill()
            if not whole:  # two that remove the same files would be in each other's way
                self._pool.submit(self._clean, active.folder, None)

    def _clean(self, folder: Path, ended: Job | None) -> None:
        """Remove a folder, and before that the checkpoints of `ended`: while the folder is there, they may be."""
        if ended is None or self._attempt(lambda: self._artefacts.drop_checkpoints(ended.project, ended.id)):
            with contextlib.suppress(OSError):
                remove(folder)

    def _collect(self) -> None:
        retention.collect(self._db, self._artefacts, self._settings.checkpoint_days)

    def _look(self) -> None:
        """See to cancellations, to parents whose children ended, and to the queue."""
        with self._db.read() as session:
            asked = select(JobRow).where(JobRow.cancelling, JobRow.state.in_(records.UNENDED))
            cancelling = [records.load(row) for row in session.scalars(asked)]
            waiting = queue.waiting(session, self._kinds)
            children = [child for active in self._active.values() for child in active.waits.values()]
            rows = session.scalars(select(JobRow).where(JobRow.id.in_(children))) if children else ()
            ended = {row.id: records.load(row) for row in rows if State(row.state).ended}
        for job in cancelling:
            self._cancel(job)
        for active in self._active.values():
            self._desk.tell(active)
        for active in self._active.values():
            active.resumes = any(child in ended for child in active.waits.values())
        running = [queue.gang(active, self._kinds) for active in self._active.values()]
        self._shares.add((gang.project, gang.ranks, gang.each) for gang in running if not gang.waits)
        plan = assign(self._executor.nodes(), [one.job for one in waiting.values()], running, self._shares.past)
        for name in plan.resume:
            self._resume(self._active[name], ended)
        for name, higher in plan.preempt.items():
            self._send_back(self._active[name], higher)
        self._start(plan.start, self._notices.due(plan, waiting))

    def _cancel(self, job: Job) -> None:
        active = self._active.get(job.id)
        if active is None and job.state is State.queued:
            lost = Active(job, self._folder(job))
            with self._db.begin() as session:
                endings.fail(session, lost, State.cancelled, None)
            self._drop(lost, State.cancelled)
        elif active is not None and active.cancelled_at is None:
            active.cancelled_at = time.monotonic()
            if active.handle is not None:
                active.handle.cancel()
            self._executor.wake()

    def _send_back(self, active: Active, higher: str) -> None:
        """Ask a gang to make room; its job waits for its turn and goes on from its checkpoint."""
        assert active.handle is not None
        _log.info("a job is sent back to its checkpoint", job=active.job.id, project=active.job.project, room_for=higher)
        active.sent_back = time.monotonic()
        active.changes["why"] = "makes room for a job of higher priority"
        active.handle.cancel()
        self._executor.wake()

    def _resume(self, active: Active, ended: Mapping[str, Job]) -> None:
        """Tell a parent how its children ended."""
        assert active.handle is not None
        for ask, child in [(ask, child) for ask, child in active.waits.items() if child in ended]:
            del active.waits[ask]
            job = ended[child]
            result = {"state": job.state.value, "error": job.error, "versions": list(job.outputs), "facts": dict(job.facts)}
            active.handle.answer(ask, result)
        active.resumes = active.watching = False

    def _start(self, placements: Mapping[str, Placement], notices: Sequence[Mapping[str, object]]) -> None:
        """Claim the jobs that start, tell others why they wait, then prepare."""
        if not placements and not notices and not self._shares.due():
            return
        claimed: list[Job] = []
        stay = {name: active for name, (active, _) in self._parked.items() if placements.get(name) == active.nodes}
        with self._db.begin() as session:
            for name in placements:
                row = session.get_one(JobRow, name)
                lease: dict[str, Any] = {
                    "token": stay[name].job.token if name in stay else secrets.token_hex(8),
                    "attempt": row.attempt + 1,
                    "started": row.started or now(),
                    "facts": {},
                    "why": None,
                    "position": None,
                }
                records.evolve(session, name, None, State.starting, **lease)
                session.refresh(row)
                claimed.append(records.load(row))
            if notices:
                queue.tell(session, notices)
            if self._shares.due():
                self._shares.keep(session)
        for job in claimed:
            active = self._active[job.id] = Active(job, self._folder(job), nodes=placements[job.id])
            if job.id in stay:
                active.instead = self._parked.pop(job.id)[0].handle
            self._release(job.id)
            active.preparing = self._pool.submit(prepare, active, self._kinds, self._artefacts, self._settings)
            active.preparing.add_done_callback(lambda _: self._executor.wake())

    def _folder(self, job: Job) -> Path:
        return self._settings.jobs / job.id / (job.token or "none")


def _stays(active: Active) -> bool:
    """Whether the launcher of a gang that was lost waits, and nothing in its folder is still being stored."""
    return bool((active.ended or {}).get("stays")) and active.verdict is None and not active.storing and not active.stuck


def _forgets(job: Job, state: State) -> bool:
    """Whether a job that came to this needs its checkpoints no more. What failed or was cancelled may be resumed by another;
    of children, as a sweep's hopeless trials are, there are too many."""
    return state is State.succeeded or (state is State.cancelled and job.parent is not None)
