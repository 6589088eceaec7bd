"""The job `sweep`: submit trials as child jobs, watch them, stop the hopeless, take the best one's model for its own.

Read `Sweep.run`. What may not be lost is kept before it is done: a trial before it is submitted, a stop before it is asked for.
All else the children's events tell again, so that a sweep whose gang was lost goes on with the trials that are there. It trains
nothing itself and holds no processor while it watches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.plugins import load
from modelyard.training.sweep.config import SweepConfig
from modelyard.training.sweep.search import Search
from modelyard.training.sweep.trials import Trial, best, choose_metric, in_words, loss, room

_KEPT, REPORT = "trials.json", "report"


def run(config: SweepConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the best trial's model as 'best', with that alias, and the artefact 'report': sweep.json, sweep.svg, sweep.png.
    Raises `Invalid` where no trial came to its end."""
    Sweep.begin(config, inputs, context).run(outputs)


@dataclass(slots=True)
class Sweep:
    """One sweep in this process. `total`: trials there will be; `metric` is known once a trial has told some."""

    config: SweepConfig
    context: JobContext
    references: Mapping[str, str]
    search: Search
    total: int
    metric: str | None
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def begin(cls, config: SweepConfig, inputs: Mapping[str, Input], context: JobContext) -> Sweep:
        """At the start, or with the trials that an earlier gang of this job left."""
        first = config.trial(config.firsts)
        search = Search(
            config.searched, seed=config.seed, grace=config.grace or max(1, first.epochs // 9), factor=config.factor
        )
        references = {role: _reference(role, given) for role, given in inputs.items()}
        sweep = cls(config, context, references, search, config.trials, config.metric)
        if (latest := context.latest()) is not None:
            sweep.resume(latest)
        return sweep

    def run(self, outputs: Outputs) -> None:
        while True:
            self.start()
            if all(trial.ended for trial in self.trials) and len(self.trials) >= self.total:
                break
            self.hear()
        self.finish(outputs)

    def resume(self, latest: Path) -> None:
        """Take up the trials that were kept. At most the last has no job yet: its job, where it was submitted, is the one child
        that is nobody's."""
        self.trials = [Trial.kept(said) for said in json.loads((latest / _KEPT).read_text())]
        for trial in self.trials:
            self.search.recall(trial.parameters)
        known = {trial.job for trial in self.trials}
        last = self.trials[-1]
        if last.job is None:
            last.job = next((job for job in self.context.watch({}) if job not in known), None) or self.submit(last)
        self.context.log(f"goes on with {len(self.trials)} trials that are there")
        for trial in self.trials:
            if trial.stopped and trial.job:
                self.context.stop(trial.job)

    def start(self) -> None:
        """Submit what there is room for."""
        while len(self.trials) < self.total and room(self.trials, self.config.parallel):
            parameters = self.search.suggest()
            if parameters is None:
                self.total = len(self.trials)
                self.context.log(f"every point of the space was tried: {self.total} trials")
                return
            trial = Trial(len(self.trials), parameters)
            self.trials.append(trial)
            self.keep()
            trial.job = self.submit(trial)
            self.context.log(f"trial {trial.number}: {in_words(parameters)} (job {trial.job})")
            self.tell(trial)

    def submit(self, trial: Trial) -> str:
        full = self.config.whole(trial.parameters)
        return self.context.submit("train", full, self.references, ranks=self.config.ranks)

    def hear(self) -> None:
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
            self.tell(trial)
        self.context.progress(sum(trial.ended for trial in self.trials), self.total, "trials")

    def judge(self, trial: Trial) -> None:
        """Tell the search what a trial came to, and stop it where that is hopeless."""
        for epoch in sorted(epoch for epoch in trial.curve if epoch > trial.told):
            trial.told = epoch
            hopeless = self.search.report(trial.number, epoch, self.loss(trial, self.score(trial, epoch)))
            last = epoch >= self.config.trial(trial.parameters).epochs
            if hopeless and not (trial.ended or trial.stopped or last):
                trial.stopped = True
                self.keep()
                self.context.stop(str(trial.job))
                self.context.log(f"trial {trial.number}: stopped after epoch {epoch}, others are better")

    def end(self, trial: Trial) -> None:
        score = self.score(trial, trial.epoch) if trial.curve and trial.state in ("succeeded", "stopped") else None
        value = None if score is None else self.loss(trial, score)
        self.search.end(trial.number, value, stopped=trial.state == "stopped")
        self.context.log(f"trial {trial.number}: {trial.state}{f': {trial.error}' if trial.error else ''}")

    def decides(self, trial: Trial) -> str:
        """The metric that decides. Raises `Invalid` where none is told."""
        if self.metric is None:
            self.metric = choose_metric(list(trial.curve[trial.epoch]))
        if self.metric is None:
            raise Invalid(
                f"The trials tell neither select_accuracy nor select_loss, but {', '.join(trial.curve[trial.epoch])}."
            )
        return self.metric

    def score(self, trial: Trial, epoch: int) -> float:
        """What a trial came to. A metric that is told but is no number counts as the worst there is."""
        metric, names = self.decides(trial), trial.curve[epoch]
        if metric not in names and trial.number == 0 and epoch == min(trial.curve):
            raise Invalid(f"The trials tell no metric '{metric}'; they tell {', '.join(names)}.")
        return names.get(metric, self.loss(trial, 1.0) * 1e300)

    def loss(self, trial: Trial, score: float) -> float:
        """A score of the metric that decides, as something of which less is better."""
        return loss(self.decides(trial), score, self.config.direction)

    def keep(self) -> None:
        """Checkpoint what could not be told again."""
        folder = self.context.work / "kept"
        folder.mkdir(exist_ok=True)
        (folder / _KEPT).write_text(json.dumps([trial.keep() for trial in self.trials]))
        self.context.checkpoint(len(self.trials), folder)

    def tell(self, trial: Trial) -> None:
        """The trial's row, among the job's facts."""
        self.context.report(**{f"trial {trial.number:03}": trial.row(self.metric)}, metric=self.metric)

    def finish(self, outputs: Outputs) -> None:
        """Make the best trial's model this job's, and leave the report."""
        chosen = best(self.trials, self.metric, self.config.direction)
        if chosen is None or self.metric is None or chosen.job is None:
            why = next((trial.error for trial in self.trials if trial.error), "all were cancelled")
            raise Invalid(f"None of {len(self.trials)} trials came to its end. The first that failed: {why}")
        made = self.context.wait(chosen.job)["versions"]  # returns when there is a processor for this job again
        output = next((one for one in made if one["alias"]), made[-1])["name"]
        about = {"job": self.context.job, "trial": chosen.number, "parameters": dict(chosen.parameters)}
        score = {"metric": self.metric, "score": chosen.score(self.metric), "trials": len(self.trials)}
        self.context.report(best=chosen.number)
        outputs.adopt("best", chosen.job, output, metadata={"sweep": {**about, **score}}, alias="best")
        folder = self.context.work / REPORT
        folder.mkdir()
        table = [{**trial.row(self.metric), "curve": trial.curve} for trial in self.trials]
        report = {**about, **score, "space": {name: str(one) for name, one in self.config.space.items()}, "table": table}
        (folder / "sweep.json").write_text(json.dumps(report, indent=1) + "\n")
        load("modelyard.training.sweep.plot:draw")(folder, self.trials, dict(self.config.space), self.metric, chosen)
        outputs.publish(REPORT, folder, version=False)


def _reference(role: str, given: Input) -> str:
    """An input as a child's submission names it."""
    kind = {"dataset": "dataset", "model": "model", "base": "model"}.get(role)
    return f"{kind}:{given.reference}" if kind and "@" in given.reference else f"artefact:{given.view.hash}"
