"""The job `sweep`: trials of `train` as child jobs, the hopeless stopped early; the best one's model becomes its own.

It trains nothing itself; how trials are submitted, watched and taken up again is their `parent`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.plugins import load
from modelyard.training.sweep.config import SweepConfig
from modelyard.training.sweep.parent import Parent, reference
from modelyard.training.sweep.search import Search
from modelyard.training.sweep.trials import Trial, best, choose_metric, loss

REPORT = "report"


def run(config: SweepConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the best trial's model as 'best', with that alias, and the artefact 'report': sweep.json, sweep.svg, sweep.png.
    Raises `Invalid` where no trial came to its end."""
    Sweep(config, inputs, context).run(outputs)


class Sweep(Parent):
    """One sweep in this process. `metric` is known once a trial has told some."""

    def __init__(self, config: SweepConfig, inputs: Mapping[str, Input], context: JobContext) -> None:
        references = {role: reference(role, given) for role, given in inputs.items()}
        super().__init__(context, references, config.trials, config.parallel)
        grace = config.grace or max(1, config.trial(config.firsts).epochs // 9)
        self.search = Search(config.searched, seed=config.seed, grace=grace, factor=config.factor)
        self.config, self.metric = config, config.metric

    def run(self, outputs: Outputs) -> None:
        self.follow()
        self.finish(outputs)

    def suggest(self) -> dict[str, Any] | None:
        return self.search.suggest()

    def recall(self, trial: Trial) -> None:
        self.search.recall(trial.parameters)

    def submit(self, trial: Trial) -> str:
        full = self.config.whole(trial.parameters)
        return self.context.submit("train", full, self.references, ranks=self.config.ranks)

    def judge(self, trial: Trial) -> None:
        """Tell the search what a trial came to, and stop it where that is hopeless."""
        for epoch in sorted(epoch for epoch in trial.curve if epoch > trial.told):
            trial.told = epoch
            hopeless = self.search.report(trial.number, epoch, self.loss(trial, self.score(trial, epoch)))
            last = epoch >= self.config.trial(trial.parameters).epochs
            if hopeless and not (trial.ended or trial.stopped or last):
                self.stop(trial)
                self.context.log(f"trial {trial.number}: stopped after epoch {epoch}, others are better")

    def end(self, trial: Trial) -> None:
        score = self.score(trial, trial.epoch) if trial.curve and trial.state in ("succeeded", "stopped") else None
        value = None if score is None else self.loss(trial, score)
        self.search.end(trial.number, value, stopped=trial.state == "stopped")

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
