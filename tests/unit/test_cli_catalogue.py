from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import catalogue
from modelyard.errors import Invalid, NotFound


class Yard:
    """Names by kind, and what was deleted of them."""

    def __init__(self, datasets: list[str], models: list[str]) -> None:
        self.names = {"dataset": datasets, "model": models}
        self.deleted: list[tuple[str, str]] = []

    def datasets(self) -> list[dict[str, str]]:
        return [{"name": name} for name in self.names["dataset"]]

    def models(self) -> list[dict[str, str]]:
        return [{"name": name} for name in self.names["model"]]

    def import_model(self, name: str, path: str, **_: object) -> dict[str, str]:
        return {"id": f"import of {path} as {name}", "state": "queued"}

    def delete(self, name: str, kind: str) -> None:
        self.deleted.append((kind, name))


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch) -> Yard:
    yard = Yard(["digits", "both"], ["cnn", "both"])

    @contextmanager
    def opened(_: object) -> Iterator[Yard]:
        yield yard

    monkeypatch.setattr(catalogue, "open_yard", opened)
    return yard


@pytest.mark.parametrize(
    ("name", "deleted"),
    [
        ("digits", ("dataset", "digits")),
        ("cnn", ("model", "cnn")),
        ("dataset:both", ("dataset", "both")),
        ("model:both", ("model", "both")),
        ("cnn@3", ("model", "cnn@3")),
        ("dataset:both@1", ("dataset", "both@1")),
    ],
)
def test_delete_finds_out_what_is_meant(yard: Yard, name: str, deleted: tuple[str, str]) -> None:
    catalogue.delete_any(name, yes=True)
    assert yard.deleted == [deleted]


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("both", Invalid, "dataset:both or model:both"),
        ("digit", NotFound, "Did you mean 'digits'"),
        ("model:digits", NotFound, "No dataset or model 'digits'"),
        ("job:digits", Invalid, "neither dataset nor model"),
    ],
)
def test_delete_deletes_nothing_that_is_not_clear(yard: Yard, name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        catalogue.delete_any(name, yes=True)
    assert yard.deleted == []


def test_an_import_says_how_its_rows_were_split() -> None:
    version: dict[str, Any] = {"metadata": {"splits": {"train": 1200, "report": 7}}}
    assert catalogue._splits(version) == "\n  train         1,200 rows\n  report            7 rows"
    assert catalogue._splits({"metadata": {}}) == ""


def test_a_version_is_shown_without_what_is_empty_and_its_metadata_last() -> None:
    version = {"reference": "m@1", "job": None, "aliases": ["best", "prod"], "metadata": {"task": "é"}}
    assert catalogue._details(version).splitlines() == [
        "reference  m@1",
        "aliases    best, prod",
        "metadata   {",
        '  "task": "é"',
        "}",
    ]


@pytest.mark.parametrize("given", [{"source": "hf:org/llama"}, {"path": Path("hf:org/llama")}])
def test_a_model_comes_from_a_path_or_a_hub(yard: Yard, capsys: pytest.CaptureFixture[str], given: dict[str, Any]) -> None:
    catalogue.import_model("llama", **given, no_wait=True)
    assert "import of hf:org/llama as llama" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{}, {"path": Path("m.onnx"), "source": "hf:org/llama"}])
def test_a_model_comes_from_one_place(yard: Yard, given: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="Say once what to import"):
        catalogue.import_model("llama", **given)
