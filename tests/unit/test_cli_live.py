from __future__ import annotations

import pytest

from modelyard.cli.live import Figures, Live, progress_text


def metric(step: int, **values: float) -> dict[str, object]:
    return {"type": "metric", "step": step, "values": values}


def test_figures_show_the_newest_and_the_curve_of_the_loss() -> None:
    figures = Figures()
    for step, loss in enumerate((8.0, 4.0, 1.0)):
        figures.add(metric(step, loss=loss, val_accuracy=0.5 + step / 10, seconds=1))
    assert figures.line(curves=True) == "loss 1 █▄▁  val accuracy 0.7"
    assert figures.line(curves=False) == "loss 1  val accuracy 0.7"


def test_away_from_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Live("train", logs=True) as live:
        live.see({"type": "state", "state": "running"})
        live.see({"type": "progress", "done": 1, "total": 2, "unit": "epochs"})
        live.see(metric(1, loss=0.5))
        live.see({"type": "log", "rank": 1, "text": "hello"})
        live.see({"type": "something new"})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["train  running", "train    1  loss 0.5", "rank 1 │ hello"]


def test_logs_are_shown_only_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Live("import") as live:
        live.see({"type": "log", "rank": 0, "text": "hello"})
    assert capsys.readouterr().err == ""


def test_progress_reads_in_its_unit() -> None:
    assert progress_text({"done": 3, "total": 20, "unit": "epochs"}) == "3/20 epochs"
    assert progress_text({"done": 1 << 20, "total": 3 << 20, "unit": "bytes"}) == "1.0 MiB/3.0 MiB"


def test_why_a_job_waits_is_told_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    with Live("train") as live:
        for why in (None, "waits for 1 free processor", "waits for 1 free processor", "needs 2"):
            live.waits(why)
    assert capsys.readouterr().err.splitlines() == ["train  queued: waits for 1 free processor", "train  queued: needs 2"]


def test_what_optimising_measured_is_told_by_variant_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    table = [{"variant": "fp32", "accuracy": 0.98, "p50_ms": 0.12}]
    with Live("optimize") as live:
        live.see(metric(0, accuracy=0.98))
        live.see({"type": "report", "rank": 0, "facts": {"metric": "accuracy", "table": table}})
        live.see({"type": "report", "rank": 0, "facts": {"table": table, "chosen": "fp32"}})
    assert capsys.readouterr().err.splitlines() == ["optimize  fp32          accuracy 0.9800  p50 0.120 ms"]
