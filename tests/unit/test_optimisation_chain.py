from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import matmul
from tiny_networks import classes, context, subject

from modelyard.engines.base import ENGINES, TensorCard
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext
from modelyard.optimisation.chain import Result, make
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.examples import Source
from modelyard.optimisation.variants import Subject


class Heard(FolderContext):
    """Keeps what is told as progress."""

    def progress(self, done: int, total: int, unit: str = "steps") -> None:
        self.metrics.append({"step": done, "of": total})


def made(root: Path, *steps: str, seed: int = 0, **more: object) -> tuple[Result, Heard]:
    root.mkdir(exist_ok=True)
    found = subject(root, **more)
    told = Heard(context(root).work)
    return make(found, OptimiseConfig(steps=steps, seed=seed), told), told


def test_steps_make_one_variant_whose_graph_is_its_own_network(tmp_path: Path) -> None:
    result, told = made(tmp_path, "finetune:epochs=6", "prune:channels=0.5,finetune=4", "quantize:static-int8")
    (variant,) = result.variants
    assert variant.name == "finetune+prune50+static-int8"
    assert variant.verified
    assert variant.proof["agreement"] >= 0.95
    assert 0 <= variant.proof["agreement_with_original"] <= 1
    assert [said["step"] for said in result.told] == [
        "finetune:epochs=6",
        "prune:channels=0.5,finetune=4",
        "quantize:static-int8",
    ]
    before, after = result.told[1]["parameters"]
    assert after < 0.5 * before
    assert len(result.told[1]["curves"]["prune"]) == 4
    assert [said for said in told.metrics if "of" in said][-1] == {"step": 10, "of": 10 + 5}
    assert [line for line in told.lines if "exported to ONNX: verified" in line]


def test_what_the_variant_loses_is_told_after_each_of_its_epochs_and_of_no_control(tmp_path: Path) -> None:
    result, told = made(tmp_path, "finetune:epochs=6", "prune:channels=0.5", "distil:epochs=3")
    steps = {said["step"]: said for said in told.metrics if "epoch_drop" in said}
    assert list(steps) == list(range(2, 11))
    assert [said["epochs_left"] for said in steps.values()] == list(range(8, -1, -1))
    assert len(result.told[-1]["curves"]["control"]) == 3
    (variant,) = result.variants
    (tmp_path / "again").mkdir()
    again = subject(tmp_path / "again")
    answers = again.source.predict(variant.engine, again.select.inputs)
    own = again.source.predict(again.engine, again.select.inputs)
    wanted = again.select.wanted
    assert steps[10]["epoch_drop"] == pytest.approx(100 * (np.mean(own == wanted) - np.mean(answers == wanted)), abs=1e-6)


@pytest.mark.parametrize(
    "steps", [["prune:channels=0.5", "distil:epochs=2,features=0.5"], ["distil:epochs=2,features=0.5,student.width=8"]]
)
def test_a_student_that_learns_features_is_watched_too(tmp_path: Path, steps: list[str]) -> None:
    result, told = made(tmp_path, *steps)
    (variant,) = result.variants
    assert variant.verified
    assert [said["epochs_left"] for said in told.metrics if "epoch_drop" in said] == [1, 0]


def test_steps_that_train_use_the_processors_that_the_job_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(Heard, "check", lambda _: used.append(torch.get_num_threads()))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for given in (1, 2):
        monkeypatch.setenv("RANK_CPUS", str(given))
        made(tmp_path / str(given), "finetune:epochs=1")
        assert max(used) == given


def test_a_float_chain_ends_as_float(tmp_path: Path) -> None:
    result, _ = made(tmp_path, "prune:channels=0.5")
    (variant,) = result.variants
    assert variant.name == "prune50"
    assert variant.proof["max_rel"] <= 1e-4
    initials = onnx.load(variant.folder / "model.onnx").graph.initializer
    assert next(list(i.dims) for i in initials if i.name == "embed.weight")[0] == 8
    assert result.lesson is None


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    steps = ("prune:channels=0.5", "distil:epochs=2", "qat:epochs=1", "quantize:static-int8")
    bytes_of = [
        (made(tmp_path / str(turn), *steps, seed=seed)[0].variants[0].folder / "model.onnx").read_bytes()
        for turn, seed in enumerate((1, 1, 2))
    ]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]


def test_a_lesson_is_kept_as_it_was_right_after_it(tmp_path: Path) -> None:
    result, _ = made(tmp_path, "prune:channels=0.5,finetune=1", "distil:epochs=2", "finetune:epochs=1")
    assert result.lesson is not None
    told = result.told[1]["curves"]
    assert (len(told["distil"]), len(told["control"])) == (2, 3)
    (variant,) = result.variants
    last = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(variant.folder / "model.onnx").graph.initializer}
    kept = result.lesson.distilled.state_dict()["embed.weight"].numpy()
    assert kept.shape == last["embed.weight"].shape
    assert not np.array_equal(kept, last["embed.weight"])  # the step after it went on with another


def test_quantize_alone_is_of_the_original(tmp_path: Path) -> None:
    result, told = made(tmp_path, "quantize:weights-int8,float_layers=head")
    (variant,) = result.variants
    assert variant.name == "weights-int8"
    assert "agreement_with_original" not in variant.proof
    assert result.told == [
        {"step": "quantize:weights-int8,float_layers=head", "method": "weights-int8", "float_layers": ["head"]}
    ]
    assert any("in float stay head" in line for line in told.lines)


@pytest.mark.parametrize("step", ["prune:weights=0.5", "quantize:q4_0", "distil:layers=2"])
def test_steps_for_language_models_are_refused(tmp_path: Path, step: str) -> None:
    with pytest.raises(Invalid, match=f"'{step}' is for language models(| and .*); this one is for"):
        made(tmp_path, step)


def test_sensitive_layers_are_told_with_their_effects(tmp_path: Path) -> None:
    result, _ = made(tmp_path, "quantize:static-int8,sensitive=1,calibration=percentile,rows=20")
    (said,) = result.told
    assert said["float_layers"] == [max(said["effects"], key=said["effects"].__getitem__)]
    assert "head" in said["effects"]


def test_a_graph_has_no_module_to_prune_but_may_be_quantised(tmp_path: Path) -> None:
    (tmp_path / "version").mkdir()
    y = TensorCard(name="y", datatype="FP32", shape=(-1, 2))
    card = matmul(tmp_path / "version" / "m.onnx").changed(outputs=(y,))
    (tmp_path / "version" / "training.json").write_text(
        '{"config": {"recipe": "module", "module": {"inputs": ["c0", "c1", "c2"]}}}'
    )
    source = Source(tmp_path / "version", card, classes(tmp_path / "data"))
    engine = ENGINES.get("onnx")(tmp_path / "version", card)
    found = Subject(tmp_path / "version", card, engine, source, source.examples("select"))
    with pytest.raises(Invalid, match=r"prune, qat: this version is a graph \(onnx\) and no torch module"):
        make(found, OptimiseConfig(steps=["prune:channels=0.5", "qat"]), context(tmp_path))
    assert make(found, OptimiseConfig(steps=["quantize:dynamic-int8"]), context(tmp_path)).variants[0].verified
