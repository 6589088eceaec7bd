"""A sweep on a whole platform: real trials, one stopped early, control killed in the middle, the best one registered."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from jobs_bench import eventually
from typer.testing import CliRunner

from modelyard.cli.edge import assemble
from modelyard.client import Yard
from modelyard.errors import Invalid
from modelyard.testing import yard

SPACE = {"lr": [0.01, 1e-6, 0.003, 2e-6], "width": [4, 8]}


def control_of(data: Path) -> int:
    """The process of the platform in `data` that is its control."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"control" in words and str(data).encode() in words:
            return int(folder.name)
    raise AssertionError("no control")


def children(platform: Yard, sweep: str) -> list[dict[str, Any]]:
    return [job for job in platform.jobs()[::-1] if job["parent"] == sweep]


def test_a_sweep_finds_the_best_also_where_control_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    with yard(data) as platform:
        platform.import_dataset("digits", "sklearn:digits")
        with pytest.raises(Invalid, match="'widht' is not an option of 'train'; did you mean 'width'"):
            platform.train("cnn", "digits", sweep={"widht": [1, 2]})
        job = platform.train("cnn", "digits", epochs=30, batch_size=256, sweep=SPACE, trials=4, wait=False)["id"]
        ended = eventually(lambda: [one for one in children(platform, job) if one["state"] == "succeeded"], 120)
        os.kill(control_of(data), signal.SIGKILL)
        version = platform.result(job)
        trials, sweep = children(platform, job), platform.job(job)
        rows = [row for name, row in sorted(sweep["facts"]["0"].items()) if name.startswith("trial ")]

        assert sweep["attempt"] == 2
        assert [trial["id"] for trial in trials] == [row["job"] for row in rows]
        assert len({json.dumps(row["parameters"]) for row in rows}) == len(rows) == 4
        assert next(trial for trial in trials if trial["id"] == ended[0]["id"])["attempt"] == 1
        assert "stopped" in {row["state"] for row in rows} <= {"stopped", "succeeded"}
        best = max((row for row in rows if row["state"] == "succeeded"), key=lambda row: row["score"])
        assert (version["job"], version["aliases"]) == (best["job"], ["best"])
        assert version["metadata"]["sweep"]["parameters"] == best["parameters"]
        assert version["metadata"]["metrics"]["select"]["accuracy"] == best["score"]

        monkeypatch.setenv("MODELYARD_DATA", str(data))
        shown = CliRunner().invoke(assemble(), ["sweep", job, "--save", str(tmp_path / "report")])
        assert f"→ {best['number']}" in shown.output, shown.output
        assert (tmp_path / "report" / "sweep.svg").read_text().startswith("<?xml")
        assert (tmp_path / "report" / "sweep.png").read_bytes().startswith(b"\x89PNG")
