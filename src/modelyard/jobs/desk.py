"""Where ranks' questions are answered: store this output, keep this checkpoint, submit a child job, wait for one.

The scheduler calls it at every step of a running job. What is a rank's fault is raised in that rank, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor as Pool
from typing import Any

from pydantic import ValidationError

from modelyard.db import Database
from modelyard.errors import Invalid, ModelyardError, NotFound
from modelyard.jobs import service
from modelyard.jobs.active import Active, Output, Question
from modelyard.jobs.types import Executor
from modelyard.kinds import JobKind
from modelyard.plugins import Registry
from modelyard.storage import Artefacts
from modelyard.tenancy.types import Principal, Scope


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
                active.kept |= question.type == "checkpoint"
            except ModelyardError as error:
                active.handle.answer(question.ask, None, error)
            else:
                active.handle.answer(question.ask, None)

    def _serve(self, active: Active, question: Question) -> bool:
        assert active.handle is not None
        try:
            match question.type:
                case "output":
                    _, folder, *_ = active.check_output(question.body)
                    self._store(active, question, self._artefacts.publish, active.job.project, folder)
                case "checkpoint":
                    folder = active.within(question.body["folder"])
                    self._store(active, question, self._artefacts.put_checkpoint, active.job.project, active.job.id, folder)
                case "submit":
                    active.handle.answer(question.ask, self._submit(active, question))
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
        future = self._pool.submit(work, *given, within=active.folder / "work")
        active.storing.append((question, future))
        future.add_done_callback(lambda _: self._executor.wake())

    def _published(self, active: Active, question: Question, stored: Any) -> None:
        name, _, task, metadata, alias = active.check_output(question.body)
        active.outputs[name] = Output(name, stored, task, metadata, alias)
        active.said.append(("output", {"name": name, "hash": stored.hash, "alias": alias}))

    def _submit(self, active: Active, question: Question) -> str:
        job = active.job
        principal = Principal(job.project, job.key, Scope.write)
        with self._db.begin() as session:
            parent = service.get(session, job.project, job.id)
            asked = active.child(question.body)
            child = service.submit(session, principal, asked, self._kinds, cpus=self._executor.cpus(), parent=parent)
        return child.id

    def _wait(self, active: Active, question: Question) -> None:
        child = str(question.body["job"])
        with self._db.read() as session:
            if service.get(session, active.job.project, child).parent != active.job.id:
                raise NotFound(f"'{child[:80]}' is no child of this job; only children can be waited for.")
        active.waits[question.ask] = child
