"""What a gang may say: bounded, read with care, and turned into what may be written."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_office import Office

from modelyard.errors import Conflict, Crashed, Invalid
from modelyard.jobs import active as module
from modelyard.jobs.active import Active, Output
from modelyard.jobs.types import Event, State
from modelyard.storage import FileEntry, Manifest

EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def active(tmp_path: Path) -> Active:
    office = Office(tmp_path / "office")
    job = office.submit("makes")
    office.close()
    return Active(job, tmp_path)


def take(active: Active, kind: str, **body: Any) -> None:
    active.take([Event(kind, body)])


def test_the_start_brings_the_job_to_running(active: Active) -> None:
    take(active, "started", pids=[5, 6])
    assert active.changes == {"state": State.running, "pids": [5, 6]}


def test_of_progress_the_last_counts(active: Active) -> None:
    for done in (1, 2, 3):
        take(active, "progress", done=done, total=3, unit="steps")
    assert active.said == [("progress", {"done": 3, "total": 3, "unit": "steps"})]


def test_facts_are_kept_by_rank_and_later_ones_win(active: Active) -> None:
    take(active, "report", rank=0, facts={"samples": 3, "a": 1})
    take(active, "report", rank=0, facts={"a": 2})
    take(active, "report", rank=1, facts={"samples": 4})
    assert active.changes["facts"] == {"0": {"samples": 3, "a": 2}, "1": {"samples": 4}}
    assert active.units == 7


def test_processor_time_counts_as_last_heard(active: Active) -> None:
    for seconds in (2.0, 2.01, "many", -1, 1e12, 1.0):
        take(active, "beat", cpu_seconds=seconds)
    assert (active.cpu_us, active.changes["cpu_us"]) == (2_000_000, 2_000_000)
    take(active, "ended", ok=False, cpu_seconds=0.0)
    assert active.cpu_us == 2_000_000


def test_one_that_says_it_waits_and_computes_holds_its_processors(active: Active, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def beats(seconds: int, rate: float, used: float) -> float:
        for _ in range(seconds):
            clock[0] += 1.0
            take(active, "beat", cpu_seconds=(used := used + rate))
        return used

    used = beats(30, 1.0, 0.0)
    active.watching = True
    used = beats(30, 0.2, used)
    assert active.idle
    used = beats(11, 0.9, used)
    assert not active.idle
    used = beats(20, 0.0, used)
    assert active.idle
    used = beats(20, 1.0, used)
    active.watching = False
    beats(1, 1.0, used)
    active.waits[1] = "child"
    assert active.idle


def test_what_an_earlier_control_left_is_charged_without_what_was_already(active: Active, tmp_path: Path) -> None:
    job = replace(active.job, cpu_us=5_000_000, facts={"0": {"samples": 3}, "1": {"samples": 4}})
    left = Active.left(job, tmp_path, 2_000_000)
    assert (left.units, left.cpu_us, left.job.cpu_us) == (7, 3_000_000, 2_000_000)


@pytest.mark.parametrize(("facts", "units"), [({"rows": 5}, 5), ({"samples": "many"}, 0), ({"rows": -5}, 0), ({}, 0)])
def test_units_are_what_the_facts_say_if_they_do(active: Active, facts: dict[str, Any], units: int) -> None:
    take(active, "report", rank=0, facts=facts)
    assert active.units == units


def test_what_is_no_number_is_null(active: Active) -> None:
    take(active, "metric", step=1, values={"loss": float("nan"), "a": 1, "b": None})
    assert active.said == [("metric", {"step": 1, "values": {"loss": None, "a": 1.0, "b": None}})]


def test_lines_are_bounded_in_length_and_number(active: Active, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 3)
    for n in range(10):
        take(active, "log", rank=0, text=str(n) * 10_000)
    texts = [body["text"] for _, body in active.said]
    assert texts == ["0" * 8192, "1" * 8192, "(more than 3 lines or 67,108,864 bytes; what follows is not kept)"]


def test_metrics_are_not_cut_by_what_is_printed(active: Active, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 3)
    for step in range(10):
        take(active, "log", rank=0, text="a step")
        take(active, "metric", step=step, values={"loss": 1.0})
    assert [body["step"] for kind, body in active.said if kind == "metric"] == list(range(10))


def test_too_many_metrics_are_thinned_out_and_leave_other_curves_alone(active: Active, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_METRICS", 10)
    for step in range(1, 101):
        take(active, "metric", step=step, values={"loss": 1.0})
        if step % 10 == 0:
            take(active, "metric", step=step, values={"select_loss": 1.0})
    losses = [body["step"] for kind, body in active.said if kind == "metric" and "loss" in body["values"]]
    assert losses == [*range(1, 11), *range(12, 31, 2), *range(32, 71, 4), *range(72, 101, 8)]
    assert sum("select_loss" in body["values"] for kind, body in active.said if kind == "metric") == 10


def test_metrics_are_thinned_by_their_bytes_too_and_names_are_bounded(active: Active, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_METRIC_BYTES", 500)
    monkeypatch.setattr(module, "_MOST_NAMES", 2)
    for step in range(1000):
        take(active, "metric", step=step, values={f"loss{step}": 1.0})
    assert 20 < len(active.said) < 100
    assert len(active._curves) == 3


def facts_of(ranks: int) -> list[Event]:
    """What so many ranks report at the start and at an epoch's end, about as much as those that train."""
    each = {"environment": "x" * 1200, "samples": 7}
    return [Event("report", {"rank": rank, "facts": each}) for _ in range(2) for rank in range(ranks)]


def test_the_facts_of_a_thousand_ranks_are_kept_and_written_now_and_then(
    active: Active, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, dumped, clock = 0, [0], [1000.0]
    dumps = module.json.dumps
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def counted(value: Any) -> str:
        text = dumps(value)
        dumped[0] += len(text)
        return text

    monkeypatch.setattr(module.json, "dumps", counted)
    events = facts_of(1024)
    for event in events:
        clock[0] += 0.001  # each comes by itself
        active.take([event])
        written += "facts" in active.changes
        active.changes.clear()
    assert len(active.facts) == 1024
    assert active.units == 7 * 1024
    assert written < 100
    assert dumped[0] < 3 * 1300 * len(events)  # in proportion to what was said
    clock[0] += 2.0
    active.take([])
    assert active.changes["facts"] == active.facts


def test_bytes_are_bounded_type_by_type_and_warnings_are_kept(active: Active, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    for n in range(10):
        take(active, "log", rank=0, text=str(n) * 40)
        take(active, "report", rank=0, facts={"n": n, "long": "x" * 20})
    take(active, "log", rank=0, text="careful", level="warning")
    said = [(kind, body.get("level")) for kind, body in active.said]
    assert (said.count(("log", None)), said.count(("report", None)), said[-1]) == (2, 2, ("log", "warning"))
    assert active.facts == {"0": {"n": 9, "long": "x" * 20}}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("progress", {"done": "many", "total": 1, "unit": "x"}),
        ("metric", {"step": 1, "values": 3}),
        ("metric", {"step": 1, "values": {"a": "x"}}),
        ("metric", {"step": float("inf"), "values": {}}),
        ("report", {"rank": 0, "facts": 1}),
        ("report", {"rank": 0, "facts": {"x": "y" * (256 << 10)}}),
        ("log", {"rank": None, "text": "x"}),
        ("output", {"ask": None}),
        ("started", {}),
        ("dance", {}),
    ],
)
def test_what_no_gang_may_say_is_refused_and_its_end_still_heard(active: Active, kind: str, body: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        active.take([Event(kind, body), Event("ended", {"ok": True, "cpu_seconds": 1.5})])
    assert active.ended == {"ok": True, "cpu_seconds": 1.5}


def test_the_facts_of_all_ranks_are_bounded_too(active: Active) -> None:
    with pytest.raises(Invalid, match=r"Rank 3\d reported more than is kept"):
        active.take([Event("report", {"rank": rank, "facts": {"x": "y" * (250 << 10)}}) for rank in range(40)])


def test_after_a_verdict_only_the_end_counts(active: Active) -> None:
    active.verdict = Invalid("enough")
    active.take([Event("dance", {}), Event("ended", {"ok": True, "error": None})])
    assert active.ended is not None
    assert str(active.error) == "enough"
    assert active.said == []


def test_out_of_memory_is_told_with_the_estimate(active: Active) -> None:
    take(active, "report", rank=1, facts={"memory_estimate": {"parameters": 4_000_000, "bound": None, "long": 1 << 70}})
    take(active, "ended", ok=False, error={"code": "invalid_request", "message": "The job ran out of memory: …"})
    assert str(active.error).endswith(
        "…\nEstimated before the first step, at the least, in bytes of a rank: parameters 4,000,000."
    )
    take(active, "ended", ok=False, error={"code": "invalid_request", "message": "another"})
    assert str(active.error) == "another"


def test_the_error_is_the_gangs_own(active: Active) -> None:
    take(active, "ended", ok=False, error={"code": "crashed", "message": "gone"})
    assert isinstance(active.error, Crashed)


@pytest.mark.parametrize(("said", "known"), [(1.5, 1_500_000), (None, 0), (-1, 0), ("x", 0), (float("nan"), 0), (1e300, 0)])
def test_processor_time_is_taken_if_it_can_be(active: Active, said: Any, known: int) -> None:
    take(active, "ended", ok=True, cpu_seconds=said)
    assert active.cpu_us == known


@pytest.mark.parametrize("path", ["/etc", "out", "{work}/../x", "{work}", "{work}/a/../../..", ""])
def test_only_what_lies_in_the_work_folder_can_be_handed_over(active: Active, path: str) -> None:
    with pytest.raises(Invalid, match="work folder"):
        active.within(path.format(work=active.folder / "work"))
    assert active.within(str(active.folder / "work" / "a" / "b")) == active.folder / "work" / "a" / "b"


def test_the_name_of_an_output_is_checked(active: Active) -> None:
    body = {"name": "out", "folder": str(active.folder / "work" / "a"), "task": None, "metadata": {}, "alias": None}
    assert active.check_output(body) == ("out", active.folder / "work" / "a", None, {}, None)
    with pytest.raises(Invalid, match="no name of an output"):
        active.check_output({**body, "name": "../out"})
    active.outputs["out"] = Output("out", Manifest({"a": FileEntry(0, EMPTY, (EMPTY,))}), None, {}, None)
    with pytest.raises(Conflict, match="published already"):
        active.check_output(body)
