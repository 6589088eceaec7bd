"""Which version is best by `bench`, and what the alias of that name means afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import Result
from test_cli_variants import REPORT, row
from test_client_yard import END, Wire, a_yard
from typer.testing import CliRunner

from modelyard.cli import bench
from modelyard.cli.edge import assemble


class Api(Wire):
    """A platform with a model m, whose version 3 the job made of version 1."""

    def __init__(self, table: list[dict[str, Any]], goal: str, best: dict[str, Any] | None) -> None:
        made = version(3, variant="openvino", original="m@1")
        versions = [version(1), *([best] if best else []), made]
        facts = {"metric": "accuracy", "goal": goal, "table": table, "report": REPORT}
        outputs = [{"reference": "m@2", "alias": None}, {"reference": "m@3", "alias": None}]
        job = {"id": "j1", "state": "succeeded", "error": None, "why": None, "outputs": outputs, "facts": {"0": facts}}
        answers = {f"/api/models/m/versions/{one['version']}": one for one in versions}
        job |= {"target": {"kind": "model", "name": "m"}}
        super().__init__({**answers, "/api/models/m": {"versions": versions}, "/api/jobs": job, "/api/jobs/j1": job}, [[END]])

    def put(self, path: str, body: dict[str, Any]) -> None:
        self.posted.append((path, body))
        self.answers["/api/models/m/versions/best"] = self.answers[f"/api/models/m/versions/{body['version']}"]

    def close(self) -> None:
        pass


def version(number: int, *aliases: str, **metadata: Any) -> dict[str, Any]:
    named = {"name": "m", "version": number, "reference": f"m@{number}", "artefact": f"{number}" * 64}
    return {**named, "task": "image-classification", "aliases": list(aliases), "metadata": metadata}


def ran(
    monkeypatch: pytest.MonkeyPatch, best: dict[str, Any] | None = None, goal: str = "latency", **own: float | None
) -> tuple[Result, list[Any]]:
    """What the command says where the original has these figures and all others are alike, and what it set."""
    table = [row("original", **own), row("fp32", p50_ms=0.2), row("openvino", chosen=True)]
    wire = Api(table, goal, best)
    monkeypatch.setattr(bench, "open_yard", lambda data: a_yard(wire, monkeypatch))
    result = CliRunner().invoke(assemble("bench"), ["bench", "m@1", "--dataset", "d@1", "--goal", goal])
    assert result.exception is None
    return result, [said for said in wire.posted if said[0].endswith("/aliases/best")]


@pytest.mark.parametrize(
    ("goal", "own", "number"),
    [
        ("latency", {"p50_ms": 0.13}, 3),
        ("latency", {"p50_ms": 0.12}, 1),
        ("latency", {"p50_ms": None}, 3),
        ("latency", {}, 3),
        ("throughput", {"items_per_s": 12345.0}, 3),
        ("throughput", {"items_per_s": 12346.0, "p50_ms": 1.0}, 1),
        ("size", {"size": 2047}, 1),
        ("memory", {"memory": 3 << 21, "size": 1}, 3),
    ],
)
def test_the_best_by_the_goal_becomes_best_the_original_too(
    goal: str, own: dict[str, float | None], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, posted = ran(monkeypatch, goal=goal, **own)
    assert posted == [("/api/models/m/aliases/best", {"version": number})]
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"best by {goal} m@{number} ")
    assert last.endswith("· the original, on its own engine") == (number == 1)


@pytest.mark.parametrize(
    ("best", "stays"),
    [
        (version(2, "best", variant="static-int8", original="m@1"), True),
        (version(2, "best", variant="fp32", original="m@7"), True),
        (version(2, "best"), True),
        (version(2, "best", variant="fp32", original="m@1"), False),
        (version(1, "best"), False),
    ],
)
def test_what_best_means_stays_unless_it_was_measured_here(
    best: dict[str, Any], stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, posted = ran(monkeypatch, best)
    assert posted == ([] if stays else [("/api/models/m/aliases/best", {"version": 3})])
    told = "'best' stays m@2, which was not measured here; `modelyard model alias m@3 best` moves it."
    assert (told in result.stderr) == stays
    assert result.stdout.splitlines()[-1].startswith("best by latency m@3 ")
