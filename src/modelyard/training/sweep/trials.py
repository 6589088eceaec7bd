"""A trial as the sweep knows it: what it was given, and what its job's events made of it.

Pure: `run` feeds it events, keeps what cannot be told again, and writes the table. Scores are as people read them; `loss` is
what the search compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

ENDED = ("succeeded", "stopped", "failed", "cancelled")
# Names of metrics of which more is better; of all others less is.
_MORE = ("accuracy", "f1", "precision", "recall", "auc", "r2", "score")


@dataclass(slots=True)
class Trial:
    """`after`: number of the last event heard; `curve`: metrics by epoch; `told`: the last epoch that the search was told."""

    number: int
    parameters: Mapping[str, Any]
    job: str | None = None
    stopped: bool = False
    state: str = "queued"
    after: int = 0
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    error: str | None = None
    told: int = 0
    began: datetime | None = None
    finished: datetime | None = None

    @classmethod
    def kept(cls, said: Mapping[str, Any]) -> Trial:
        """As a checkpoint has it; all else its job's events tell again."""
        return cls(said["number"], dict(said["parameters"]), said["job"], said["stopped"])

    def keep(self) -> dict[str, Any]:
        names = ("number", "parameters", "job", "stopped")
        return {name: getattr(self, name) for name in names}

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def epoch(self) -> int:
        return max(self.curve, default=0)

    @property
    def seconds(self) -> float | None:
        """From its first start to its end."""
        return (self.finished - self.began).total_seconds() if self.began and self.finished else None

    def take(self, event: Mapping[str, Any]) -> None:
        """Note an event of its job."""
        self.after = int(event["seq"])
        if event["type"] == "metric":
            known = {name: value for name, value in event["values"].items() if value is not None}
            self.curve[int(event["step"])] = known
            return
        state, at = str(event["state"]), datetime.fromisoformat(event["at"])
        self.state = "stopped" if state == "cancelled" and self.stopped else state
        self.error = (event.get("error") or {}).get("message")
        if state == "running":
            self.began = self.began or at
        if self.ended:
            self.finished = at

    def score(self, metric: str, epoch: int | None = None) -> float | None:
        """The metric at an epoch, or at the last."""
        return self.curve.get(self.epoch if epoch is None else epoch, {}).get(metric)

    def row(self, metric: str | None) -> dict[str, Any]:
        """The trial as the sweep's table shows it."""
        score = self.score(metric) if metric else None
        shown = {"number": self.number, "parameters": dict(self.parameters), "job": self.job, "state": self.state}
        return {**shown, "epoch": self.epoch, "score": score, "seconds": self.seconds, "error": self.error}


def loss(metric: str, score: float, direction: str | None = None) -> float:
    """The score as something of which less is better; by the metric's name, where no direction was said."""
    more = metric.endswith(_MORE) if direction is None else direction == "maximise"
    return -score if more else score


def choose_metric(names: Sequence[str]) -> str | None:
    """What decides where nobody said what: accuracy on the select split, or the loss."""
    return next((name for name in ("select_accuracy", "select_loss") if name in names), None)


def room(trials: Sequence[Trial], parallel: int | None) -> bool:
    """Whether one more may be submitted: fewer than `parallel` are on their way, and none of them still waits to start."""
    underway = [trial for trial in trials if not trial.ended]
    return all(trial.state != "queued" for trial in underway) and (parallel is None or len(underway) < parallel)


def best(trials: Sequence[Trial], metric: str | None, direction: str | None = None) -> Trial | None:
    """The trial with the best score of those that came to their end; of equal ones the first."""
    ended = [t for t in trials if metric and t.state == "succeeded"]
    scored = [(loss(metric, score, direction), t) for t in ended if metric and (score := t.score(metric)) is not None]
    return min(scored, key=lambda pair: (pair[0], pair[1].number))[1] if scored else None


def in_words(parameters: Mapping[str, Any]) -> str:
    """'lr=0.00312 width=32'."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in parameters.items()
    )
