"""What commands submit: --set and their own options are one configuration, whichever says a thing; said twice it is refused."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from test_client_yard import Wire, a_yard
from typer.testing import CliRunner

from modelyard.cli import bench, evaluate, optimize, train
from modelyard.cli.edge import assemble
from modelyard.errors import Invalid

VERSION = {"reference": "m@2", "name": "m", "version": 2, "task": None, "metadata": {"original": "m@1"}}
JOB = {"id": "j1", "kind": "optimise", "state": "failed", "why": None, "error": {"code": "crashed", "message": "It died."}}
DATASET = {"kind": "dataset", "reference": "digits@1", "parents": []}


class Api(Wire):
    def close(self) -> None:
        pass


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Exception | None]:
    """The job that a command submits, and what it ends with."""
    at = "/api/models/m/versions/2"
    wire = Api({at: VERSION, f"{at}/lineage": {**VERSION, "kind": "model", "parents": [DATASET]}, "/api/jobs": JOB})
    wire.answers["/api/jobs/j1"] = JOB
    wire.streams = [[{"seq": 1, "type": "state", "state": "failed"}]]
    for command in (bench, evaluate, optimize, train):
        monkeypatch.setattr(command, "open_yard", lambda data: a_yard(wire, monkeypatch))
    words = shlex.split(line)
    ran = CliRunner().invoke(assemble(words[0]), words)
    return (wire.posted[-1][1] if wire.posted else None), ran.exception  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optimize m@2 --goal size --max-accuracy-drop 2 --cpus 2", "goal=size max_accuracy_drop=2 resources='{\"cpus\": 2}'"),
        ("optimize m@2 --on clothes@1 --with quantize", "dataset=clothes@1 steps='[\"quantize\"]'"),
        ("optimize m@2 --trials 3 --space channels=[0,0.5]", "trials=3 space=channels=[0,0.5]"),
        ("evaluate m@2 --no-wait --against m@7 --on d@1 --metric wer", "against=m@7 on=d@1 metric=wer"),
        ("evaluate m@2 --no-wait --slice light --slice camera", 'slices=\'["light","camera"]\''),
        ("evaluate m@2 --no-wait --slice light --slice camera", "slices=light,camera"),
        ("train n -d digits@1 --recipe tabular --ranks 2 --epochs 3 --timeout 9", "recipe=tabular ranks=2 epochs=3 timeout=9"),
        ("train n -d digits@1 --model m@1 --base m@2 --cpus 2", "model=m@1 base=m@2 resources='{\"cpus\": 2}'"),
        ("train n -d digits@1 --sweep lr=1..2 --trials 3 --parallel 2 --metric select_loss",
         "sweep=lr=1..2 trials=3 parallel=2 metric=select_loss"),
        ("bench m@2 --goal throughput --dataset clothes@1", "goal=throughput dataset=clothes@1"),
    ],
)  # fmt: skip
def test_what_has_an_option_may_be_set(one: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"optimize": "m@2", "evaluate": "m@2 --no-wait", "train": "n -d digits@1", "bench": "m@2"}
    command = one.split()[0]
    set_ = " ".join(f"--set {shlex.quote(pair)}" for pair in shlex.split(other))
    first, _ = typed(one, monkeypatch)
    second, error = typed(f"{command} {kept[command]} {set_}", monkeypatch)
    assert not isinstance(error, TypeError)
    assert first is not None
    assert first == second


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("optimize m@2 --goal size --set goal=size", "'goal' is said twice, by its option and by --set"),
        ("optimize m@2 --set seed=1 --set seed=2", "'seed' is said twice: give it once"),
        ("optimize m@2 --set wait=true", "'wait' is no setting"),
        ("evaluate m@2 --against m@1 --set against=m@1", "'against' is said twice"),
        ("evaluate m@2 --set reference=m@1", "'reference' is no setting"),
        ("train n -d digits@1 --set dataset=d@1", "'dataset' is said twice"),
        ("train n -d digits@1 --set name=x", "'name' is no setting"),
        ("bench m@2 --goal size --set goal=size", "'goal' is said twice"),
    ],
)
def test_what_is_said_twice_or_is_no_setting_is_refused(line: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posted, error = typed(line, monkeypatch)
    assert posted is None
    assert isinstance(error, Invalid)
    assert error.message.startswith(what)


def test_bench_measures_for_as_long_as_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    posted, _ = typed("bench m@2 --set seconds=0.2", monkeypatch)
    base = {"variants": bench.ENGINES, "max_accuracy_drop": 100.0, "alias": False}
    assert posted["config"] == {**base, "goal": "latency", "seconds": 0.2}


def test_what_is_not_said_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    posted, _ = typed("optimize m@2", monkeypatch)
    assert posted["config"] == {"max_accuracy_drop": 1.0, "goal": "latency"}
    posted, _ = typed("train n -d digits@1", monkeypatch)
    assert posted["config"] == {"recipe": "image-classifier"}
    assert posted["ranks"] == 1
