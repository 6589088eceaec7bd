"""Where ranks' questions are answered: store this output, keep this checkpoint, submit a child job, wait for one, watch them.

The scheduler calls it at every step of a running job. What is a rank's fault is raised in that rank, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as Pool
from functools import partial
from typing import Any

from pydantic import ValidationError

from modelyard.db import Database, Session
from modelyard.errors import Invalid, ModelyardError, NotFound, Unavailable
from modelyard.jobs import service
from modelyard.jobs.active import Active, Output, Question
from modelyard.jobs.types import Executor, Job
from modelyard.kinds import JobKind
from modelyard.plugins import Registry
from modelyard.storage import Artefacts, Manifest
from modelyard.tenancy.types import Principal, Scope

# Checkpoints of one job that are kept at most, besides the best.
_MOST_KEPT = 100
# Seconds after which a rank is told that the store does not take what it was given: a store that fails says so long before.
_STORING = 3600.0


class Desk:
    """Serves the questions of all active jobs; storing is done in `pool`."""

    def __init__(self, db: Database, artefacts: Artefacts, executor: Executor, kinds: Registry[JobKind], pool: Pool) -> None:
        self._db = db
        self._artefacts = artefacts
        self._executor = executor
        self._kinds = kinds
        self._pool = pool

    def serve(self, active: Active) -> bool:
        """Take up what the job's ranks asked; True where the queue must be looked at for it."""
        queue = False
        while active.questions:
            # Taken off only when it is dealt with: a database that is away for a moment loses nothing.
            queue |= self._serve(active, active.questions[0])
            active.questions.pop(0)
        return queue

    def settle(self, active: Active) -> None:
        """Answer the questions whose storing is done."""
        assert active.handle is not None
        for question, future in [pair for pair in active.storing if pair[1].done()]:
            active.storing.remove((question, future))
            try:
                stored = future.result()
                if question.type == "output":
                    self._published(active, question, stored)
                elif question.type == "adopt":
                    self._adopted(active, question, stored)
                else:
                    active.kept, active.further = True, active.further or stored.further
            except ModelyardError as error:
                active.handle.answer(question.ask, None, error)
            else:
                active.handle.answer(question.ask, None)

        for question, future in [pair for pair in active.storing if time.monotonic() - pair[0].asked > _STORING]:
            active.storing.remove((question, future))
            active.stuck.append(future)
            said = f"The store did not take it within {_STORING:g} s, and is waited for no longer."
            active.handle.answer(question.ask, None, Unavailable(said))

    def _serve(self, active: Active, question: Question) -> bool:
        assert active.handle is not None
        try:
            match question.type:
                case "output":
                    _, folder, *_ = active.check_output(question.body)
                    publish = partial(self._artefacts.publish, within=active.folder / "work")
                    self._store(active, question, publish, active.job.project, folder)
                case "adopt":
                    _, made = self._made(active, question.body)
                    self._store(active, question, self._artefacts.manifest, active.job.project, str(made["hash"]))
                case "checkpoint":
                    folder = active.within(question.body["folder"])
                    if not all(future.done() for future in active.stuck):  # checkpoints have one writer at a time
                        raise Unavailable("The store still has not taken the checkpoint before, which was given up.")
                    score, last = question.body["score"], max(1, min(int(question.body["last"]), _MOST_KEPT))
                    step = max(-(1 << 62), min(int(question.body["step"]), 1 << 62))
                    policy: dict[str, Any] = {"step": step, "score": None if score is None else float(score), "last": last}
                    keep = partial(self._artefacts.put_checkpoint, within=active.folder / "work", **policy)
                    self._store(active, question, keep, active.job.project, active.job.id, folder)
                case "submit":
                    active.handle.answer(question.ask, self._submit(active, question))
                    return True
                case "watch":
                    active.watches[question.ask] = {str(job): int(seq) for job, seq in dict(question.body["after"]).items()}
                    active.watching = True
                    return True
                case "stop":
                    self._stop(active, str(question.body["job"]))
                    active.handle.answer(question.ask, None)
                    return True
                case _:
                    self._wait(active, question)
                    return True
        except ModelyardError as error:
            active.handle.answer(question.ask, None, error)
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            active.handle.answer(question.ask, None, Invalid(f"That could not be understood: {error}"))
        return False

    def _store(self, active: Active, question: Question, work: Callable[..., Any], *given: Any) -> None:
        future = self._pool.submit(work, *given)
        active.storing.append((question, future))
        future.add_done_callback(lambda _: self._executor.wake())

    def _published(self, active: Active, question: Question, stored: Any) -> None:
        name, _, task, metadata, alias = active.check_output(question.body)
        self._note(active, Output(name, stored, task, metadata, alias, question.body["version"] is not False))

    def _note(self, active: Active, output: Output) -> None:
        active.outputs[output.name] = output
        active.said.append(("output", {"name": output.name, "hash": output.manifest.hash, "alias": output.alias}))

    def tell(self, active: Active) -> None:
        """Answer who watches its children and is to hear of them."""
        for ask, after in list(active.watches.items()):
            assert active.handle is not None
            with self._db.read() as session:
                news = service.news(session, active.job.id, after)
            if news is None:
                continue
            del active.watches[ask]
            try:
                active.handle.answer(ask, news)
            except ModelyardError as error:  # longer than a message may be: a child's own fault
                active.handle.answer(ask, None, error)

    def _submit(self, active: Active, question: Question) -> str:
        job = active.job
        principal = Principal(job.project, job.key, Scope.write)
        nodes = self._executor.nodes()  # a cluster is asked before the database is held
        with self._db.begin() as session:
            parent = service.get(session, job.project, job.id)
            asked = active.child(question.body)
            known = question.body["submission"].get("reuse")
            reuse = known if isinstance(known, dict) else None
            child = service.submit(session, principal, asked, self._kinds, nodes=nodes, parent=parent, reuse=reuse)
        active.has_children = True
        return child.id

    def _wait(self, active: Active, question: Question) -> None:
        child = str(question.body["job"])
        with self._db.read() as session:
            self._child(session, active, child)
        active.waits[question.ask] = child

    def _stop(self, active: Active, child: str) -> None:
        job = active.job
        with self._db.begin() as session:
            self._child(session, active, child)
            service.cancel(session, Principal(job.project, job.key, Scope.write), child)

    def _child(self, session: Session, active: Active, child: str) -> Job:
        """A job that the asking one submitted; it may neither see nor touch another."""
        found = service.get(session, active.job.project, child)
        if found.parent != active.job.id:
            raise NotFound(f"'{child[:80]}' is no child of this job; only children can be waited for, watched and stopped.")
        return found

    def _made(self, active: Active, body: Mapping[str, Any]) -> tuple[Job, Mapping[str, Any]]:
        """A child and the output of it that is to be adopted."""
        active.check_name(body["name"])
        with self._db.read() as session:
            child = self._child(session, active, str(body["job"]))
        made = next((output for output in child.outputs if output["name"] == body["output"]), None)
        if made is None:
            wanted = str(body["output"])[:80]
            raise NotFound(f"The job {child.id} is {child.state.value} and has no output '{wanted}' to adopt.")
        return child, made

    def _adopted(self, active: Active, question: Question, manifest: Manifest) -> None:
        body = question.body
        child, made = self._made(active, body)
        metadata = {**made.get("metadata", {}), **dict(body["metadata"])}
        alias = body["alias"] and str(body["alias"])
        maker = str(made.get("job", child.id))  # another, where the child reused what that made
        self._note(active, Output(str(body["name"]), manifest, made.get("task"), metadata, alias, job=maker))
