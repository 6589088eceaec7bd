from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelyard.cli import values
from modelyard.errors import Invalid


def test_settings_nest_and_are_json_where_they_can_be() -> None:
    pairs = ["epochs=5", "module.loss=mse", 'module.inputs=["x0"]', "module.arguments.width=20", "note=a=b"]
    assert values.nested(pairs) == {
        "epochs": 5,
        "module": {"loss": "mse", "inputs": ["x0"], "arguments": {"width": 20}},
        "note": "a=b",
    }


@pytest.mark.parametrize("pairs", [["epochs"], ["=5"], ["a=1", "a.b=2"]])
def test_settings_that_make_no_sense_are_refused(pairs: list[str]) -> None:
    with pytest.raises(Invalid):
        values.nested(pairs)


@pytest.mark.parametrize(
    ("text", "amount"), [("8GiB", 8 << 30), ("512Mi", 512 << 20), ("1.5 GB", 1_500_000_000), ("2k", 2000), ("4096", 4096)]
)
def test_memory_is_said_in_its_units(text: str, amount: int) -> None:
    assert values.amount_of_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "much", "8 GiB each", "-1", "1e9", "8XB"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is no amount of memory; expected something like 8GiB"):
        values.amount_of_bytes(text)


@pytest.mark.parametrize(
    ("text", "calls"), [("100/s", 100.0), ("2.5", 2.5), ("30/m", 0.5), ("3600/h", 1.0), ("none", None), (None, None)]
)
def test_a_rate_is_said_by_the_second_minute_or_hour(text: str | None, calls: float | None) -> None:
    assert values.rate(text) == calls


@pytest.mark.parametrize("text", ["", "many", "1/d", "0/s", "-1/s", "inf", "nan/s", "1/s/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is no rate of calls; expected something like 100/s"):
        values.rate(text)


def test_tensors_are_json_or_files(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[[1, 2]]")
    np.save(tmp_path / "y.npy", np.ones((1, 2), np.float32))
    found = values.tensors(["a=[1]", f"x=@{tmp_path / 'x.json'}", f"y=@{tmp_path / 'y.npy'}"])
    assert found["a"] == [1]
    assert found["x"] == [[1, 2]]
    assert found["y"].dtype == np.float32


def test_a_numpy_file_with_objects_is_refused_unread(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], object))
    with pytest.raises(Invalid, match="cannot be read"):
        values.tensors([f"y=@{tmp_path / 'y.npy'}"])


@pytest.mark.parametrize("pair", ["x", "x=[1", "x=@nowhere.json"])
def test_inputs_that_cannot_be_read_are_named(pair: str) -> None:
    with pytest.raises(Invalid):
        values.tensors([pair])


@pytest.mark.parametrize(
    ("text", "count"), [(None, None), ("90", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000), ("1.5s", 1.5)]
)
def test_times_from_now(text: str | None, count: float | None) -> None:
    assert values.seconds(text) == count


@pytest.mark.parametrize("text", ["", "d", "soon", "-1h", "0", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        values.seconds(text)


@pytest.mark.parametrize("pairs", [["a=1", "a=2"], ["b.c=1", "b.c=1"], ['a={"b":1}', "a.b=2"], ["a.b=1", 'a={"c":2}']])
def test_what_is_said_twice_is_refused(pairs: list[str]) -> None:
    with pytest.raises(Invalid, match=rf"^'{pairs[1].partition('=')[0]}' is said twice"):
        values.nested(pairs)


def test_settings_and_options_are_one() -> None:
    said = {"goal": "size", "trials": None, "steps": None}
    assert values.asked(["trials=3", "seed=1"], said, {"seed": 0, "goal": "latency", "lr": 1}) == {
        "goal": "size",
        "trials": 3,
        "seed": 1,
        "lr": 1,
    }
    assert values.asked(None, {"a": None}) == {}
    with pytest.raises(Invalid, match="'goal' is said twice, by its option and by --set: give it once"):
        values.asked(["goal=memory"], said)
    for own in ("wait=true", "on_event=1", "reference=m@1", "name=m"):
        with pytest.raises(Invalid, match=f"^'{own.partition('=')[0]}' is no setting"):
            values.asked([own], said)


@pytest.mark.parametrize(
    ("value", "names"),
    [("light", ["light"]), ("light, camera", ["light", "camera"]), (["a,b", "c"], ["a,b", "c"]), (3, ["3"]), ("", [])],
)
def test_names_are_parted_by_commas_or_a_list(value: object, names: list[str]) -> None:
    assert values.names(value) == names
