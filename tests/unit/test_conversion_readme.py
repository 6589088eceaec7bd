from __future__ import annotations

import json
import sys
from pathlib import Path

from tiny_models import matmul, simple

from modelyard.conversion.readme import write


def front(text: str) -> dict:
    lines = text.split("---\n")[1].strip().splitlines()
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in lines)}


def test_front_matter_names_task_library_and_metrics(tmp_path: Path) -> None:
    write(tmp_path, matmul(tmp_path / "m.onnx"), "digits", "Some text.", {"accuracy": 0.97})
    text = (tmp_path / "README.md").read_text()
    facts = front(text)
    assert (facts["pipeline_tag"], facts["library_name"]) == ("tabular-regression", "onnx")
    assert facts["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.97}]
    assert "| input | `x` | FP32 | [-1, 3] |" in text
    assert "Some text." in text


def test_the_code_by_hand_runs(tmp_path: Path, monkeypatch) -> None:
    import numpy as np
    import torch

    write(tmp_path, simple(tmp_path), "simple", "")
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    names = {"x": torch.ones(2, 10)}
    exec(code, names)
    assert names["outputs"].shape == (2, 1)
    write(tmp_path, matmul(tmp_path / "m.onnx"), "m", "")
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {"x": np.ones((1, 3), np.float32)}
    exec(code, names)
    assert names["outputs"][0].shape == (1, 2)
