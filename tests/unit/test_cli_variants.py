from __future__ import annotations

from typing import Any

import pytest

from modelyard.cli.variants import findings, measured


def row(variant: str, **changes: Any) -> dict[str, Any]:
    accuracy = {"accuracy": 0.98123, "low": 0.961, "high": 0.992, "drop": 0.37}
    speed = {"size": 2048, "memory": 3 << 20, "p50_ms": 0.1234, "p99_ms": 0.5, "items_per_s": 12345.6}
    return {"variant": variant, "chosen": False, "verdict": "within the budget", **accuracy, **speed} | changes


INTERVAL = {"value": 0.98, "low": 0.95, "high": 0.99}
REPORT = {"rows": 270, "original": INTERVAL, "chosen": INTERVAL, "drop": {"value": 0.0, "low": -0.5, "high": 0.5}}


def test_variants_stand_side_by_side_with_the_chosen_one_marked() -> None:
    rows = [row("original", drop=0.0), row("static-int8", chosen=True, verdict="best latency within 1 points")]
    text = findings({"metric": "accuracy", "table": rows, "report": REPORT})
    _, original, chosen, report, _, last = text.splitlines()
    assert original.startswith("  original")
    assert chosen.startswith("→ static-int8")
    for figure in ("0.9812", "0.961–0.992", "0.37", "2.0 KiB", "3.0 MiB", "0.123", "12,346", "best latency"):
        assert figure in chosen
    assert "270 rows" in report
    assert "0.00 points lost (-0.50 to 0.50)" in last


def test_rows_that_were_left_out_of_the_report_are_told() -> None:
    text = findings({"metric": "accuracy", "table": [row("original")], "report": REPORT | {"left_out": 3}})
    assert "on 270 rows kept for the report (3 rows left out):" in text


def test_a_narrow_terminal_keeps_the_verdict_and_breaks_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [row("original", verdict="original"), row("dynamic-int8", chosen=True, verdict="best latency within 1 points")]
    text = findings({"metric": "accuracy", "table": rows, "report": REPORT})
    assert max(map(len, text.splitlines())) <= 80
    assert "best latency" in text


def test_a_variant_reads_in_one_line() -> None:
    assert measured(row("fp32"), "accuracy") == "fp32          accuracy 0.9812  p50 0.123 ms"


def test_what_could_not_be_measured_is_a_dash() -> None:
    names = ("accuracy", "low", "high", "drop", "memory", "p50_ms", "p99_ms", "items_per_s")
    rows = [row("dynamic-int8", **dict.fromkeys(names))]
    assert findings({"metric": "r2", "table": rows, "report": REPORT}).count("—") == 8


def test_a_lesson_stands_beside_its_control() -> None:
    told = {
        "rows": 300,
        "teacher": INTERVAL,
        "distilled": INTERVAL,
        "control": INTERVAL | {"value": 0.9},
        "gain": REPORT["drop"],
    }
    text = findings({"metric": "accuracy", "table": [row("distil")], "report": REPORT, "distillation": {"report": told}})
    assert "on 300 rows of report (control: the same student from scratch)" in text
    assert "  control   accuracy 0.9000 (0.950–0.990)" in text
    assert text.endswith("gain 0.00 points (-0.50 to 0.50)")


def test_a_language_model_loses_percent_and_makes_tokens() -> None:
    lesson = {"rows": 9, **dict.fromkeys(("teacher", "distilled", "control"), INTERVAL), "gain": REPORT["drop"]}
    report = REPORT | {"left_out": 3}
    text = findings({"metric": "perplexity", "table": [row("q4_0")], "report": report, "distillation": {"report": lesson}})
    assert "on 270 independent blocks kept for the report (3 texts left out):" in text
    assert "on 9 independent blocks of report" in text
    header = text.splitlines()[0].lower()
    assert [header.count(name) for name in ("perplexity", "lost %", "tokens/s", "rows/s")] == [1, 1, 1, 0]
    assert "0.00 percent lost" in text
    assert text.endswith("gain 0.00 percent (-0.50 to 0.50)")
