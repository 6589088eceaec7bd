from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import matmul, simple
from tiny_programs import entries, write

from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.importing import only_model, run
from modelyard.engines.base import ENGINES, ModelCard
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input


def imported(tmp_path: Path, upload: Path, **config: object) -> dict:
    (tmp_path / "work").mkdir()
    outputs = FolderOutputs(tmp_path / "out")
    run(
        ImportModelConfig(**config),
        {"files": Input("upload", {}, FolderView(upload))},
        outputs,
        FolderContext(tmp_path / "work"),
    )
    return outputs.published["model"]


def test_an_onnx_file_becomes_a_version(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    matmul(tmp_path / "in" / "graph.onnx")
    made = imported(tmp_path, tmp_path / "in")
    card = ModelCard.load(made["folder"])
    assert made["task"] == card.task == "tabular-regression"
    assert made["metadata"]["source"] == "graph.onnx"
    assert made["metadata"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert sorted(p.name for p in made["folder"].iterdir()) == ["README.md", "model.json", "model.onnx"]
    assert ENGINES.get("onnx")(made["folder"], card).forward({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 2)


def test_a_program_of_torch_export_becomes_a_version(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "program.pt2", entries())
    made = imported(tmp_path, tmp_path / "in")
    card = ModelCard.load(made["folder"])
    assert (made["task"], card.engines, made["metadata"]["format"]) == ("tabular-regression", ("pt2",), "pt2")
    assert made["metadata"]["verification"]["ok"]
    assert sorted(p.name for p in made["folder"].iterdir()) == ["README.md", "model.json", "model.pt2"]
    assert "It answers as torch's own loader" in (made["folder"] / "README.md").read_text()


def test_weights_with_their_module_become_a_version(tmp_path: Path) -> None:
    simple(tmp_path / "in")
    (tmp_path / "in" / "model.json").unlink()
    made = imported(tmp_path, tmp_path / "in", module="model.py:SimpleModel")
    card = ModelCard.load(made["folder"])
    assert card.engines == ("torch",)
    assert card.inputs[0].name == "x"
    assert sorted(p.name for p in made["folder"].iterdir()) == ["README.md", "model.json", "model.pth", "model.py"]


def test_the_model_file_is_found_or_asked_for(tmp_path: Path) -> None:
    assert only_model({"model.py": 1, "a/weights.pth": 1}) == "a/weights.pth"
    with pytest.raises(Invalid, match=r"there are a\.onnx, b\.pt: name one"):
        only_model({"b.pt": 1, "a.onnx": 1})
    with pytest.raises(Invalid, match=r"there are readme\.txt"):
        only_model({"readme.txt": 1})


def test_the_file_named_must_be_there_inside_and_of_a_known_kind(tmp_path: Path) -> None:
    simple(tmp_path / "in")
    for file, error, said in (
        ("nothing.onnx", Invalid, "no file 'nothing.onnx'"),
        ("../in/model.pth", Unsafe, "not a path inside"),
        ("model.py", Invalid, "of no known kind"),
    ):
        (tmp_path / file.replace("/", "_")).mkdir()
        with pytest.raises(error, match=said):
            imported(tmp_path / file.replace("/", "_"), tmp_path / "in", file=file)
