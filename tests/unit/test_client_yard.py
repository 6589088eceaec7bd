from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.client import Yard, following
from modelyard.client.wire import segment
from modelyard.errors import Crashed, Invalid, TimedOut, Unavailable


class Wire:
    """Answers prepared per path; `streams` are what successive looks at the events bring: events, or an error at their end."""

    def __init__(self, answers: dict[str, Any], streams: list[list[Any]] | None = None) -> None:
        self.answers, self.streams = answers, streams or []
        self.posted: list[tuple[str, Any]] = []
        self.after: list[int] = []

    def get(self, path: str, **params: Any) -> Any:
        return self.answers[path]

    def post(self, path: str, body: Any = None) -> Any:
        self.posted.append((path, body))
        return self.answers[path]

    def lines(self, path: str, **params: Any) -> Iterator[Any]:
        self.after.append(params["after"])
        for item in self.streams.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item


def a_yard(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Yard:
    client = Yard("http://127.0.0.1:9", "my_key")
    client.close()
    client._wire = wire  # type: ignore[assignment]
    monkeypatch.setattr(following.time, "sleep", lambda seconds: None)
    return client


def event(seq: int, kind: str = "log", **body: Any) -> dict[str, Any]:
    return {"seq": seq, "type": kind, **body}


END = event(4, "state", state="succeeded")


def test_a_followed_job_is_taken_up_where_the_stream_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [[event(1), event(2), Unavailable("broke")], [Unavailable("still")], [TimedOut("silent")], [event(3), END]]
    wire = Wire({}, streams)
    assert [e["seq"] for e in a_yard(wire, monkeypatch).follow("j1")] == [1, 2, 3, 4]
    assert wire.after == [0, 2, 2, 2]


def test_a_stream_that_ends_early_is_asked_for_again_unless_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire({"/api/jobs/j1": {"state": "running"}}, [[event(1)], [END]])
    assert [e["seq"] for e in a_yard(wire, monkeypatch).follow("j1")] == [1, 4]
    wire = Wire({"/api/jobs/j1": {"state": "failed"}}, [[event(1)]])
    assert [e["seq"] for e in a_yard(wire, monkeypatch).follow("j1")] == [1]


def test_a_platform_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(following.time, "monotonic", lambda: float(next(clock)))
    client = a_yard(Wire({}, [[Unavailable("gone")] for _ in range(5)]), monkeypatch)
    with pytest.raises(Unavailable, match="gone"):
        list(client.follow("j1"))


def test_waiting_raises_what_the_job_failed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"id": "j1", "state": "failed", "error": {"code": "invalid_request", "message": "no column 'y'"}}
    seen: list[Any] = []
    client = a_yard(Wire({"/api/jobs/j1": failed}, [[event(1), event(2, "state", state="failed")]]), monkeypatch)
    with pytest.raises(Invalid, match="no column 'y'"):
        client.wait("j1", seen.append)
    assert len(seen) == 2


def test_the_result_of_a_job_is_the_version_with_its_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [{"reference": "m@2", "alias": None}, {"reference": "m@3", "alias": "best"}]
    job = {"id": "j1", "state": "succeeded", "error": None, "outputs": outputs, "target": {"kind": "model", "name": "m"}}
    version = {"name": "m", "version": 3}
    wire = Wire({"/api/jobs/j1": job, "/api/models/m/versions/3": version}, [[END]])
    assert a_yard(wire, monkeypatch).result("j1") == version


def test_training_submits_a_job_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire({"/api/jobs": {"id": "j1"}})
    client = a_yard(wire, monkeypatch)
    assert client.train("m", "d@1", "module", ranks=2, model="m@1", epochs=3, wait=False) == {"id": "j1"}
    body = {
        "kind": "train",
        "config": {"recipe": "module", "epochs": 3},
        "inputs": {"dataset": "dataset:d@1", "model": "model:m@1"},
        "target": {"kind": "model", "name": "m"},
        "ranks": 2,
    }
    assert wire.posted == [("/api/jobs", body)]


def test_a_bare_name_is_its_newest_version(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/api/models/m": {"versions": [{"version": 1}, {"version": 7}]}, "/api/models/m/versions/7": {"version": 7}}
    assert a_yard(Wire(answers), monkeypatch).version("m") == {"version": 7}


def test_what_is_served_and_optimised_by_a_bare_name(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [
        {"name": "m", "version": 1, "reference": "m@1", "aliases": [], "metadata": {}},
        {"name": "m", "version": 2, "reference": "m@2", "aliases": ["best"], "metadata": {"variant": "fp32"}},
    ]
    answers = {"/api/models/m": {"versions": versions}, "/api/deployments": {"name": "d"}, "/api/jobs": {"id": "j1"}}
    wire = Wire(answers)
    client = a_yard(wire, monkeypatch)
    for model in ("m", "m@1"):
        client.deploy("d", model, wait=False)
    for model in ("m", "m@2"):
        client.optimize(model, dataset="d@1", wait=False)
    assert [body["model"] for path, body in wire.posted if path == "/api/deployments"] == ["m@best", "m@1"]
    assert [body["inputs"]["model"] for path, body in wire.posted if path == "/api/jobs"] == ["model:m@1", "model:m@2"]


def test_a_url_is_no_source_of_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Invalid, match=r"URL.*not supported.*CSV"):
        a_yard(Wire({}), monkeypatch).import_dataset("d", "http://example.org/rows.csv")


def test_a_deployment_that_fails_raises_its_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pending = {"name": "d", "state": "pending", "model": "m@1"}
    failed = {**pending, "state": "failed", "error": "the weights do not fit"}
    wire = Wire({"/api/deployments": pending, "/api/deployments/d": failed})
    with pytest.raises(Crashed, match="weights do not fit"):
        a_yard(wire, monkeypatch).deploy("d", "m@1")
    assert a_yard(wire, monkeypatch).deploy("d", "m@1", wait=False) == pending


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_cannot_leave_its_place_in_a_path(name: str) -> None:
    with Yard("http://127.0.0.1:9", "my_key") as client, pytest.raises(Invalid):
        client.job(name)
    assert segment("a/../b?c#d") == "a%2F..%2Fb%3Fc%23d"


def test_a_prediction_needs_one_thing_to_predict_on() -> None:
    with Yard("http://127.0.0.1:9", "my_key") as client:
        for arguments in ({}, {"inputs": {"x": [1]}, "image": "a.png"}, {"image": "a.png", "text": "a"}):
            with pytest.raises(Invalid, match=r"one of inputs.*, image=… and text=…"):
                client.predict("m", **arguments)


def test_a_module_names_its_file_and_class(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    with Yard("http://127.0.0.1:9", "my_key") as client, pytest.raises(Invalid, match=r"model\.py:SimpleModel"):
        client.import_model("m", tmp_path / "w.pth", module="SimpleModel")
