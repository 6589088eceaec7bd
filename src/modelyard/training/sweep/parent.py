"""A job whose work is done by its children: trials are submitted while there is room, watched, and taken up again by the next
gang where this one is lost. `sweep` and `search` are such jobs.

What may not be lost is kept before it is done: a trial before it is submitted, a stop before it is asked for. All else the
children's events tell again. It holds no processor while it watches.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.kinds import Input, JobContext
from modelyard.training.sweep.trials import Trial, in_words, room

_KEPT = "trials.json"


class Parent(ABC):
    """`total`: trials there will be at most. A subclass says what is tried, as which job, and what news of one mean."""

    def __init__(self, context: JobContext, references: Mapping[str, str], total: int, parallel: int | None) -> None:
        self.context, self.references, self.total, self.parallel = context, references, total, parallel
        self.trials: list[Trial] = []
        self.besides: dict[str, Any] = {}  # what else is to be kept, as JSON
        self._began = time.time()  # the first gang; its clock is any node's

    @abstractmethod
    def suggest(self) -> dict[str, Any] | None:
        """The next trial's parameters; None where there is nothing to try now, or, once all have ended, at all."""

    @abstractmethod
    def recall(self, trial: Trial) -> None:
        """Note a trial that an earlier gang of this job suggested."""

    @abstractmethod
    def submit(self, trial: Trial) -> str:
        """Its job."""

    @abstractmethod
    def judge(self, trial: Trial) -> None:
        """Act on what a trial's job told since."""

    @abstractmethod
    def end(self, trial: Trial) -> None:
        """Note how a trial ended."""

    @abstractmethod
    def tell(self, trial: Trial) -> None:
        """The trial's row, among the job's facts."""

    def follow(self) -> None:
        """Returns when all trials have ended and there is nothing more to try."""
        if (latest := self.context.latest()) is not None:
            self._resume(latest)
        while True:
            self._start()
            if all(trial.ended for trial in self.trials) and len(self.trials) >= self.total:
                return
            self._hear()

    def spent(self) -> float:
        """Seconds since this job's first gang began."""
        return time.time() - self._began

    def stop(self, trial: Trial) -> None:
        """End a trial early."""
        trial.stopped = True
        self.keep()
        self.context.stop(str(trial.job))

    def keep(self) -> None:
        """Checkpoint what could not be told again."""
        folder = self.context.work / "kept"
        folder.mkdir(exist_ok=True)
        kept = {"began": self._began, "trials": [trial.keep() for trial in self.trials], "besides": self.besides}
        (folder / _KEPT).write_text(json.dumps(kept))
        self.context.checkpoint(len(self.trials), folder)

    def _resume(self, latest: Path) -> None:
        """Take up the trials that were kept. At most the last has no job yet: its job, where it was submitted, is the one child
        that is nobody's."""
        kept = json.loads((latest / _KEPT).read_text())
        self._began, self.besides = kept["began"], kept.get("besides", {})  # one of before has none
        self.trials = [Trial.kept(said) for said in kept["trials"]]
        for trial in self.trials:
            self.recall(trial)
        if not self.trials:
            return
        known = {trial.job for trial in self.trials}
        last = self.trials[-1]
        if last.job is None:
            last.job = next((job for job in self.context.watch({}) if job not in known), None) or self.submit(last)
        self.context.log(f"goes on with {len(self.trials)} trials that are there")
        for trial in self.trials:
            if trial.stopped and trial.job:
                self.context.stop(trial.job)

    def _start(self) -> None:
        """Submit what there is room for."""
        while len(self.trials) < self.total and room(self.trials, self.parallel):
            parameters = self.suggest()
            if parameters is None:
                if all(trial.ended for trial in self.trials):  # else what one comes to may allow another
                    self.total = len(self.trials)
                    self.context.log(f"nothing more is tried after {self.total} trials")
                return
            trial = Trial(len(self.trials), parameters)
            self.trials.append(trial)
            self.keep()
            trial.job = self.submit(trial)
            self.context.log(f"trial {trial.number}: {in_words(parameters)} (job {trial.job})")
            self.tell(trial)

    def _hear(self) -> None:
        """Wait for news of the trials, and act on them."""
        by_job = {trial.job: trial for trial in self.trials}
        for job, events in self.context.watch({str(job): trial.after for job, trial in by_job.items()}).items():
            trial = by_job.get(job)
            if trial is None or not events:
                continue
            already = trial.ended
            for event in events:
                trial.take(event)
            self.judge(trial)
            if trial.ended and not already:
                self.end(trial)
                self.context.log(f"trial {trial.number}: {trial.state}{f': {trial.error}' if trial.error else ''}")
            self.tell(trial)
        self.context.progress(sum(trial.ended for trial in self.trials), self.total, "trials")


def reference(role: str, given: Input) -> str:
    """An input as a child's submission names it."""
    kind = {"dataset": "dataset", "model": "model", "base": "model"}.get(role)
    return f"{kind}:{given.reference}" if kind and "@" in given.reference else f"artefact:{given.view.hash}"
