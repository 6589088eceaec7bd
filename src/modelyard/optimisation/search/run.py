"""The job `search`: chains of steps are tried as `optimise` child jobs, one variant each, and the best within the budget
becomes this job's.

Of variants it makes and measures none itself, but before the first it has `estimate` find out what they would cost. How trials
are submitted, watched and taken up again is their `parent`'s. What a trial found comes as its job's metrics: step 0 the
original, step 1 the variant, measured by turns, and before, from step 2 on, what the variant loses after each of its epochs.
Speeds of different jobs are compared by what the original took in the same job, so that a busy moment of the machine counts for
nobody.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from modelyard.data.datasets import Dataset
from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.torch import load_module
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.optimisation.choose import Choice as Chosen
from modelyard.optimisation.choose import Measured, choose
from modelyard.optimisation.config import OptimiseConfig, check_inputs
from modelyard.optimisation.evaluation import fresh
from modelyard.optimisation.examples import Source
from modelyard.optimisation.publish import REPORT as OPTIMISED
from modelyard.optimisation.publish import machine
from modelyard.optimisation.search.budget import Took, epochs_left
from modelyard.optimisation.search.config import SearchConfig
from modelyard.optimisation.search.front import MODELLED, losses, pareto
from modelyard.optimisation.search.point import Point, Shape, candidates, named, shape_of, usual, written
from modelyard.optimisation.search.proposer import Proposer
from modelyard.optimisation.search.stopping import hopeless
from modelyard.optimisation.steps.config import epochs, variant_name
from modelyard.optimisation.unpad import can_unpad
from modelyard.plugins import load
from modelyard.training.gang import processors
from modelyard.training.split import Split
from modelyard.training.sweep.parent import Parent, reference
from modelyard.training.sweep.space import Choice
from modelyard.training.sweep.trials import Trial

REPORT = "report"
_ORIGINAL, _VARIANT = 0, 1  # steps of a trial's metrics
_WORST = 4.0  # times the budget
_LEAST_WORST = 5.0  # points
_ANY = 1e6  # points: R² and ρ may fall by more than a hundred
_ESTIMATING = 0.2  # of the time budget that may go to estimates
_PATIENT = 10.0  # times as long as usual a search may be silent while it makes them
_TOLD = 200  # letters of an error in the table


def run(config: SearchConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the chosen variant as 'best', with that alias, and the artefact 'report': search.json, pareto.svg, pareto.png.
    Raises `Invalid` where no trial came to its end, or none is within the budget."""
    check_inputs(inputs)
    Search(config, inputs, context).run(outputs)


class Search(Parent):
    """One search in this process."""

    def __init__(self, config: SearchConfig, inputs: Mapping[str, Input], context: JobContext) -> None:
        references = {role: reference(role, given) for role, given in inputs.items()}
        super().__init__(context, references, config.trials, config.parallel)
        self.config, self.model, self.dataset = config, inputs["model"].reference, inputs["dataset"].reference
        self.space, self.metric = _looked_at(config, inputs, context)
        self.points = candidates(self.space)
        self.costs = {json.dumps(point, sort_keys=True): epochs(Point(**point).steps()) for point in self.points}
        self.total = min(self.total, len(self.points))
        self.proposer = Proposer(self.space, self.points, list(self.costs.values()), config.seed, self._worst)
        self.inputs, self._informed = inputs, False
        context.report(metric=self.metric, goal=config.goal, points=len(self.points), **self._budget())

    def run(self, outputs: Outputs) -> None:
        self.follow()
        self.finish(outputs)

    def suggest(self) -> dict[str, Any] | None:
        if not self._informed:
            self._inform()
        most = self._epochs_left()
        return self.proposer.suggest(lambda point: self._cost(point) <= most)

    def recall(self, trial: Trial) -> None:
        steps = written(Point(**trial.parameters).steps())  # of an earlier release a point may have fewer options
        found = next((point for point in self.points if written(Point(**point).steps()) == steps), None)
        if found is None:
            raise Invalid(
                f"A trial of before, {' '.join(steps) or 'fp32'}, is nothing that is searched now; start the search anew."
            )
        trial.parameters = found
        self.proposer.recall(found)

    def submit(self, trial: Trial) -> str:
        steps = Point(**trial.parameters).steps()
        made = {"steps": list(written(steps))} if steps else {"variants": ["fp32"]}
        same = {name: getattr(self.config, name) for name in ("confidence", "seed", "seconds")}
        # Whatever it loses is a result; whether that is too much is this job's to say.
        asked = {**made, **same, "max_accuracy_drop": _ANY}
        # What its job would report as well: figures of other libraries, another machine or more processors are not its own.
        known = {"environment": machine()} if self.config.reuse else None
        return self.context.submit("optimise", asked, self.references, reuse=known)

    def judge(self, trial: Trial) -> None:
        """Stop a trial that trains and gets nowhere."""
        lost, left = _trained(trial)
        if hopeless(lost, left, self._worst) and not (trial.ended or trial.stopped):
            self.stop(trial)
            self.context.log(f"trial {trial.number}: {_why(trial)}")

    def end(self, trial: Trial) -> None:
        found = self._figures(trial)
        axes = losses(found) if found else None
        if axes is None and trial.state == "stopped":
            axes = (_trained(trial)[0][-1], *[math.nan] * (len(MODELLED) - 1))
        self.proposer.end(trial.number, None if axes is None else _scaled(axes, trial))

    def tell(self, trial: Trial) -> None:
        self.context.report(**{f"trial {trial.number:03}": self._row(trial)})

    def finish(self, outputs: Outputs) -> None:
        """Choose, make the chosen one's model this job's, and leave the report."""
        table = [self._row(trial) for trial in self.trials]
        for row, on_front in zip(table, pareto(table), strict=True):
            row["front"] = on_front
        measured = [_measured(row) for row in table if row["state"] == "succeeded"]
        if not measured:
            why = next((row["error"] for row in table if row["error"]), "all were cancelled")
            raise Invalid(f"None of {len(self.trials)} trials came to its end. The first that failed: {why}")
        choice = self._choose(measured)
        for row in table:
            otherwise = row["error"] if row["state"] == "stopped" else row["state"]
            row["verdict"] = choice.verdicts.get(str(row["number"]), otherwise)
        trial = self.trials[int(choice.variant)]
        self.context.report(**{f"trial {row['number']:03}": row for row in table}, best=trial.number)
        made = self.context.wait(str(trial.job))["versions"]  # returns when there is a processor for this job again
        output = next(one["name"] for one in made if one["alias"])
        about = {"job": self.context.job, "trial": trial.number, "trials": len(self.trials), "command": self._command(trial)}
        asked = {name: getattr(self.config, name) for name in ("goal", "max_accuracy_drop")}
        metadata = {**asked, "verdict": choice.verdicts[choice.variant], "search": about}
        outputs.adopt("best", str(trial.job), output, metadata=metadata, alias="best")
        folder = self.context.work / REPORT
        folder.mkdir()
        inputs = {"model": self.model, "dataset": self.dataset}
        space = {name: list(one.values) for name, one in self.space.items()}
        report = {**about, **inputs, "config": self.config.model_dump(mode="json"), "space": space, "table": table}
        (folder / "search.json").write_text(json.dumps(report, indent=1) + "\n")
        load("modelyard.optimisation.search.plot:draw")(folder, table, self.metric, trial.number, self.config.max_accuracy_drop)
        outputs.publish(REPORT, folder, version=False)

    def _choose(self, measured: list[Measured]) -> Chosen:
        """By the trials' numbers. Raises `Invalid`, which names the nearest by its steps."""
        try:
            return choose(measured, self.config.goal, self.config.max_accuracy_drop)
        except Invalid:
            named = [replace(one, variant=_named(self._row(self.trials[int(one.variant)]))) for one in measured]
            choose(named, self.config.goal, self.config.max_accuracy_drop)
            raise

    def _row(self, trial: Trial) -> dict[str, Any]:
        """The trial as the table shows it; speeds are of a machine on which the original takes what it took in the median."""
        steps = Point(**trial.parameters).steps()
        told = {"number": trial.number, "variant": variant_name(steps) or "fp32", "steps": list(written(steps))}
        error = _why(trial) if trial.state == "stopped" else trial.error and trial.error.partition("\n")[0][:_TOLD]
        told |= {"job": trial.job, "state": trial.state, "seconds": trial.seconds, "error": error}
        found = self._figures(trial)
        return told if found is None else {**told, **found, **self._on_one_machine(trial, found)}

    def _figures(self, trial: Trial) -> dict[str, float] | None:
        """What it found, once it has come to its end: one that fails may have measured before."""
        return trial.curve.get(_VARIANT) if trial.state == "succeeded" else None

    def _on_one_machine(self, trial: Trial, found: Mapping[str, float]) -> dict[str, float]:
        own, originals = trial.curve[_ORIGINAL], [t.curve[_ORIGINAL] for t in self.trials if _ORIGINAL in t.curve]
        speeds = ("p50_ms", "items_per_s")
        times: dict[str, float] = {n: median(one[n] for one in originals) / own[n] for n in speeds if n in own}
        if "p50_ms" in times:  # by the median: one slow call in a hundred says nothing of the machine
            times["p99_ms"] = times["p50_ms"]
        return {name: round(found[name] * factor, 4) for name, factor in times.items() if name in found}

    def _inform(self) -> None:
        """Tell what points cost, as far as that is found out without training them."""
        self._informed = True
        shapes = [shape_of(Point(**point).steps()) for point in self.points]
        if "costs" not in self.besides:
            self.besides["costs"] = self._estimated(shapes)
            self.keep()
        costs = self.besides["costs"]
        self.proposer.know([None if shape is None else costs.get(named(shape)) for shape in shapes])

    def _estimated(self, shapes: Sequence[Shape | None]) -> Mapping[str, Sequence[float]]:
        """By name; none where no trial would train, and so is as quick itself."""
        if not any(self.costs.values()) or ModelCard.load(self.inputs["model"].view.local()).module is None:
            return {}
        most = math.inf if self.config.time_budget is None else _ESTIMATING * self.config.time_budget
        different = list({named(shape): shape for shape in shapes if shape is not None}.values())
        began = time.monotonic()
        self.context.allow(_PATIENT)  # exports take a while
        found = load("modelyard.optimisation.search.estimate:estimate")(
            self.inputs, different, self.config.seed, self.context, lambda: self.spent() < most
        )
        self.context.allow()
        seconds = round(time.monotonic() - began, 3)
        self.context.report(estimates={"shapes": len(different), "measured": len(found), "seconds": seconds})
        self.context.log(
            f"measured {len(found)} of {len(different)} shapes of the network before any is trained, in {seconds:.0f} s"
        )
        return {name: list(costs) for name, costs in found.items()}

    @property
    def _worst(self) -> float:
        """Points; what loses more is no better or worse for it."""
        return max(_LEAST_WORST, _WORST * self.config.max_accuracy_drop)

    def _epochs_left(self) -> float:
        """Of how many epochs the next trial may be."""
        if self.config.time_budget is None:
            return math.inf
        took = [Took(self._trained_for(trial), trial.seconds, trial.ended) for trial in self.trials]
        return epochs_left(self.config.time_budget, self.spent(), took)

    def _trained_for(self, trial: Trial) -> int:
        """Epochs: of one that was stopped those that it came to."""
        return len(_trained(trial)[0]) if trial.state == "stopped" else self._cost(trial.parameters)

    def _cost(self, point: Mapping[str, Any]) -> int:
        """Epochs of a point's steps."""
        return self.costs[json.dumps(point, sort_keys=True)]

    def _budget(self) -> dict[str, float]:
        return {} if self.config.time_budget is None else {"time_budget": self.config.time_budget}

    def _command(self, trial: Trial) -> str:
        """What makes the chosen variant again."""
        steps = written(Point(**trial.parameters).steps())
        ways = [word for step in steps for word in ("--with", step)] or ["--set", 'variants=["fp32"]']
        unusual = {name: getattr(self.config, name) for name in ("seed", "seconds", "confidence")}
        unusual = {name: value for name, value in unusual.items() if value != OptimiseConfig.model_fields[name].default}
        ways += [word for name, value in unusual.items() for word in ("--set", f"{name}={json.dumps(value)}")]
        ways += ["--cpus", str(processors())] if processors() > 1 else []
        words = ["modelyard", "optimize", self.model, "--on", self.dataset, *ways]
        budget = json.dumps(self.config.max_accuracy_drop)
        return shlex.join([*words, "--max-accuracy-drop", budget, "--goal", self.config.goal])


def _looked_at(config: SearchConfig, inputs: Mapping[str, Input], context: JobContext) -> tuple[Mapping[str, Choice], str]:
    """The space, and the metric. Raises `Invalid` where the version is a variant, or does not fit the data, or where the
    report split can show nothing."""
    folder = inputs["model"].view.local()
    if (folder / OPTIMISED).exists():
        raise Invalid(f"{inputs['model'].reference} is what an optimise job made; search from the version it was made from.")
    card = ModelCard.load(folder)
    source = Source(folder, card, Dataset.open(inputs["dataset"].view.local()))
    if source.writes:
        raise Invalid("The model answers texts as they are: there is nothing to search among; `evaluate` says how good it is.")
    fresh(source, context)
    metric = source.metric
    if config.space is not None:
        return config.space, metric
    trains = card.module is not None
    heads = trains and bool(Split.of(load_module(folder, card)).heads)
    unpads = not trains and "onnx" in card.files and can_unpad(inside(folder, card.files["onnx"]))
    return usual(trains=trains, labels=metric == "accuracy", heads=heads, unpads=unpads), metric


def _measured(row: Mapping[str, Any]) -> Measured:
    names = ("accuracy", "low", "high", "drop", "drop_low", "drop_high", "memory", "p50_ms", "p99_ms", "items_per_s")
    figures = {name: row.get(name, math.nan) for name in names}
    return Measured(variant=str(row["number"]), verified=True, size=int(row.get("size", 0)), **figures)


def _trained(trial: Trial) -> tuple[list[float], int]:
    """Points lost after each of its epochs so far, and how many are left."""
    told = [trial.curve[step] for step in sorted(trial.curve) if "epoch_drop" in trial.curve[step]]
    return [one["epoch_drop"] for one in told], int(told[-1]["epochs_left"]) if told else 0


def _why(trial: Trial) -> str:
    """Why it was stopped."""
    lost, left = _trained(trial)
    return f"stopped: loses {lost[-1]:.2f} points after {len(lost)} of {len(lost) + left} epochs"


def _named(row: Mapping[str, Any]) -> str:
    """A trial by all that its steps are."""
    return " ".join(row["steps"]) or str(row["variant"])


def _scaled(axes: Sequence[float], trial: Trial) -> list[float]:
    """What the proposer is told: costs by the logarithms of their ratios to the original's."""
    own = losses({**trial.curve[_ORIGINAL], "drop": 0.0}) if _ORIGINAL in trial.curve else None
    if own is None:
        return [axes[0], *[math.nan] * (len(axes) - 1)]
    return [axes[0], *(_log_ratio(axis, of) for axis, of in zip(axes[1:], own[1:], strict=True))]


def _log_ratio(value: float, of: float) -> float:
    """How many times smaller `value` is than `of`, as a loss; both below 0 where more is better."""
    ratio = value / of
    return math.log2(ratio if value > 0 else 1 / ratio)
