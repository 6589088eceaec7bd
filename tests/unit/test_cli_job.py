import re
from typing import Any

from modelyard.cli.job import page

RANK = {
    "mesh": "data=2",
    "seed": 3,
    "hashes": {"dataset": "0123456789abcdef"},
    "environment": {"torch": "2.9", "python": "3.11"},
    "memory_estimate": {"parameters": 2048, "rows": 32, "bound": None},
    "step_ms": {"data": 0.1, "forward": 2.5, "backward": 4.0, "optimiser": 0.3, "communication": 0.7},
    "samples_per_second": 1234.5,
    "memory_peak": 300 << 20,
    "checkpoint_seconds": 1.25,
    "flops_per_step": 2_000_000_000,
    "flops_per_second": 30_000_000_000,
    "utilisation": 0.41,
}


def unstyled(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


def job(**changes: Any) -> dict[str, Any]:
    whole = {
        "id": "j1",
        "kind": "train",
        "state": "succeeded",
        "error": None,
        "why": None,
        "attempt": 2,
        "resume": "j0",
        "preempted": 1,
        "priority": 5,
        "created": "2026-01-01T10:00:00.123456+00:00",
        "started": "2026-01-01T10:00:05+00:00",
        "finished": None,
        "config": {"recipe": "module", "epochs": 3, "clip": None, "module": {"name": "Line"}, "tabular": {"width": 9}},
        "progress": None,
        "outputs": [{"reference": "cnn@3", "hash": "ff"}],
        "ranks": 2,
        "inputs": {"dataset": "dataset:digits@1", "code": f"artefact:{'ab' * 32}"},
        "facts": {"1": RANK, "0": RANK},
        "cpu_seconds": 7.0,
    }
    return whole | changes


def test_the_page_has_what_a_run_rests_on_and_where_its_time_went() -> None:
    text = page(job(), {"loss": [1.0, 0.5], "nothing": []})
    for part in (
        "j1 · train",
        "cnn@3",
        "data=2",
        "dataset:digits@1 · 0123456789ab",
        "torch 2.9",
        "parameters 2.0 KiB",
        "1.25 s",
        "2e+09 a step, 3e+10 a second and rank, 41% of the GPU",
        "artefact abababababab\n",
        "1×, for a higher priority",
        "2026-01-01 10:00:05 UTC",
        "recipe module, epochs 3, module.name Line\n",
    ):
        assert part in text, part
    lines = text.splitlines()
    assert any(line.split() == ["resumed", "from", "j0"] for line in lines)
    (header,) = (line for line in lines if "SAMPLES/S" in line)
    assert "COMMUNICATION MS" in header
    ranks = [line.split() for line in lines if "300.0 MiB" in line]
    assert [rank[0] for rank in ranks] == ["0", "1"]
    assert ranks[0][2:] == ["300.0", "MiB", "0.1", "2.5", "4", "0.3", "0.7"]
    assert any(line.startswith("loss") and "0.5" in line for line in lines)


def test_a_traceback_is_shown_as_it_was() -> None:
    error = {"code": "invalid_request", "message": "rank 1: KeyError: 'x'\nTraceback:\n  File"}
    text = unstyled(page(job(state="failed", error=error), {}))
    assert any(line.split(maxsplit=1) == ["note", "rank 1: KeyError: 'x'"] for line in text.splitlines())
    assert text.endswith("ERROR\nrank 1: KeyError: 'x'\nTraceback:\n  File")


def test_a_job_that_has_said_nothing_yet_has_a_page() -> None:
    text = page(job(state="queued", facts={}, outputs=[], why="waits for 2 CPUs, 1 of 2 is free; 1st"), {})
    assert "waits for 2 CPUs" in text
    assert "SAMPLES" not in text
    assert page(job(facts={"0": {"pid": 7}}), {})
