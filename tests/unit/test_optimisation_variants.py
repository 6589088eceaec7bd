from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import table
from tiny_models import MATRIX, matmul, simple

from modelyard.data.datasets import Feature
from modelyard.engines.base import ENGINES, ModelCard, TensorCard
from modelyard.engines.torch import TorchEngine
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext
from modelyard.optimisation import variants as room
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.examples import Source
from modelyard.optimisation.variants import Subject, Variant, make


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    card = simple(tmp_path / "version")
    engine = TorchEngine(tmp_path / "version", card)
    data = table(tmp_path / "data", Feature(type="float"), lambda x: engine.forward({"x": x})["output"][:, 0].tolist())
    source = Source(tmp_path / "version", card, data)
    return Subject(tmp_path / "version", card, engine, source, source.examples("select"))


@pytest.fixture
def context(tmp_path: Path) -> FolderContext:
    (tmp_path / "work").mkdir()
    return FolderContext(tmp_path / "work")


def made(subject: Subject, context: FolderContext, **config: object) -> dict[str, Variant]:
    return {variant.name: variant for variant in make(subject, OptimiseConfig(**config), context)}


def test_all_variants_are_made_and_verified(subject: Subject, context: FolderContext) -> None:
    found = made(subject, context)
    assert list(found) == ["fp32", "static-int8", "dynamic-int8"]
    assert found["fp32"].proof["max_rel"] <= 1e-4
    assert found["fp32"].proof["batches"] == [1, 2, 7, 36, 64]
    for name in ("static-int8", "dynamic-int8"):
        assert found[name].verified
        assert found[name].proof["agreement"] >= found[name].proof["required"] == 0.95
        assert found[name].proof["max_abs"] > found["fp32"].proof["max_abs"]
    assert all(ModelCard.load(v.folder).engines == ("onnx",) for v in found.values())


def test_only_what_is_asked_for_in_that_order(subject: Subject, context: FolderContext) -> None:
    assert list(made(subject, context, variants=("dynamic-int8", "fp32"))) == ["dynamic-int8", "fp32"]


def test_one_that_answers_otherwise_is_not_verified(
    subject: Subject, context: FolderContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(source: Path, target: Path, calibration: object) -> None:
        other = simple(target.parent / "other", seed=9)
        (target.parent / "converted").mkdir()
        room.CONVERTERS.get("onnx").convert(
            target.parent / "other", other, target.parent / "converted", {"x": np.ones((1, 10), "f")}
        )
        (target.parent / "converted" / "model.onnx").rename(target)

    def fail(source: Path, target: Path, calibration: object) -> None:
        raise Invalid("as it is")

    monkeypatch.setattr(room, "QUANTISERS", {"static-int8": spoil, "dynamic-int8": fail})
    found = made(subject, context)
    assert [found[name].verified for name in found] == [True, False, False]
    assert "predicts" in found["static-int8"].proof["reason"]
    assert found["static-int8"].engine is not None
    assert found["dynamic-int8"].proof == {"ok": False, "reason": "as it is"}
    assert found["dynamic-int8"].engine is None
    assert len([line for line in context.lines if "not verified" in line]) == 2


def test_eight_bits_that_change_no_weight_are_not_verified(tmp_path: Path, context: FolderContext) -> None:
    card = simple(tmp_path / "version")
    source = (tmp_path / "version" / "model.py").read_text()
    (tmp_path / "version" / "model.py").write_text(source.replace("hidden, 1)", "hidden, 1)\n        self.double()"))
    card = card.changed(
        inputs=(TensorCard(name="x", datatype="FP64", shape=(-1, 10)),),
        outputs=(TensorCard(name="output", datatype="FP64", shape=(-1, 1)),),
    )
    engine = TorchEngine(tmp_path / "version", card)
    data = table(
        tmp_path / "data", Feature(type="float"), lambda x: engine.forward({"x": x.astype("d")})["output"][:, 0].tolist()
    )
    rows = Source(tmp_path / "version", card, data)
    found = made(Subject(tmp_path / "version", card, engine, rows, rows.examples("select")), context)
    assert [found[name].verified for name in found] == [True, False, False]
    assert "dynamic-int8 changes no weight of this model, which has DOUBLE of Gemm" in found["dynamic-int8"].proof["reason"]


def test_an_imported_graph_is_its_own_float_variant(tmp_path: Path, context: FolderContext) -> None:
    (tmp_path / "version").mkdir()
    y = TensorCard(name="y", datatype="FP32", shape=(-1, 2))
    card = matmul(tmp_path / "version" / "m.onnx").changed(labels=("no", "yes"), outputs=(y,))
    folder = tmp_path / "data"
    data = table(folder, Feature(type="label", names=("no", "yes")), lambda x: (x[:, :3] @ MATRIX).argmax(axis=1).tolist())
    (tmp_path / "version" / "training.json").write_text(
        '{"config": {"recipe": "module", "module": {"inputs": ["c0", "c1", "c2"]}}}'
    )
    source = Source(tmp_path / "version", card, data)
    engine = ENGINES.get("onnx")(tmp_path / "version", card)
    subject = Subject(tmp_path / "version", card, engine, source, source.examples("select"))
    found = made(subject, context, variants=("fp32", "dynamic-int8"))
    assert found["fp32"].proof["max_abs"] == 0
    assert found["fp32"].card.files == {"onnx": "model.onnx"}
    assert found["dynamic-int8"].verified
