"""Training in this process, with plain folders for a platform: what it publishes, that it repeats, that it resumes."""

import itertools
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modelyard.data import transforms
from modelyard.data.config import ImportDatasetConfig
from modelyard.data.datasets import Dataset
from modelyard.data.importing import run as import_dataset
from modelyard.engines.base import ModelCard
from modelyard.engines.torch import TorchEngine
from modelyard.errors import Invalid, NotFound
from modelyard.kinds import Cancelled, FolderContext, FolderOutputs, FolderView, Input
from modelyard.training import keeping
from modelyard.training.config import TrainConfig
from modelyard.training.loop import rate, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "simple_model"
TEN = [f"x{i}" for i in range(10)]
SIMPLE = {
    "recipe": "module",
    "epochs": 40,
    "batch_size": 32,
    "lr": 0.05,
    "optimiser": "sgd",
    "module": {"name": "SimpleModel", "inputs": TEN, "target": "y", "loss": "mse", "weights": "simple_model.pth"},
}


def imported(work: Path, *, files: Path | None = None, **config) -> Input:
    work.mkdir()
    inputs = {"files": Input("artefact:f", {}, FolderView(files, "f"))} if files else {}
    outputs = FolderOutputs(work)
    import_dataset(ImportDatasetConfig(**config), inputs, outputs, FolderContext(work))
    return Input("data@1", outputs.published["dataset"]["metadata"], FolderView(outputs.published["dataset"]["folder"], "d"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("digits") / "work", source="sklearn:digits")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    files = tmp_path_factory.mktemp("numbers")
    x = np.random.default_rng(7).uniform(-1, 1, (1000, 10))
    y = x @ np.linspace(-1, 1, 10) + 0.5 * np.abs(x[:, 0] - x[:, 1])
    np.savetxt(files / "data.csv", np.c_[x, y], "%.6f", ",", header=",".join([*TEN, "y"]), comments="")
    return imported(tmp_path_factory.mktemp("numbers_dataset") / "work", files=files, target="y")


def train(
    config: TrainConfig, folder: Path, context: FolderContext | None = None, **inputs: Input
) -> tuple[Path, FolderContext]:
    """The published model's folder, and the context with what was said."""
    context = context or FolderContext(folder / "work")
    context.work.mkdir(parents=True, exist_ok=True)
    outputs = FolderOutputs(folder)
    run(config, inputs, outputs, context)
    return outputs.published["model"]["folder"], context


def simple(**changes) -> TrainConfig:
    return TrainConfig.model_validate({**SIMPLE, **changes})


CODE = Input("artefact:c", {}, FolderView(EXAMPLE, "c"))
SMALL = TrainConfig(epochs=2, image_classifier={"width": 4, "blocks": 1})


def test_digits_train_to_a_model_that_its_engine_and_transform_serve(digits, tmp_path):
    config = TrainConfig(epochs=12, image_classifier={"width": 24})
    folder, context = train(config, tmp_path, dataset=digits)
    card = ModelCard.load(folder)
    assert card.task == "image-classification"
    assert [(t.name, t.datatype, t.shape) for t in card.inputs] == [("pixels", "FP32", (-1, 1, 8, 8))]
    assert [(t.name, t.datatype, t.shape) for t in card.outputs] == [("logits", "FP32", (-1, 10))]

    transform, engine = transforms.build(card.transform), TorchEngine(folder, card)
    held_out = Dataset.open(digits.view.local()).columns("report", ["image", "label"])
    answers = transform.after(engine.forward(transform.before({"image": held_out["image"]})))
    right = [int(label) for label in answers["label"]] == held_out["label"]
    assert right.mean() >= 0.97
    assert [m["step"] for m in context.metrics] == list(range(1, 13))
    assert context.metrics[-1]["select_accuracy"] > context.metrics[0]["select_accuracy"]
    assert context.facts["samples"] == 12 * Dataset.open(digits.view.local()).rows("train")
    foreseen = context.facts["memory_estimate"]
    assert foreseen["checkpoint"] == foreseen["parameters"] + foreseen["optimiser"] == 3 * foreseen["parameters"]


def test_the_same_job_twice_gives_the_same_bytes_and_another_seed_others(digits, tmp_path):
    first, _ = train(SMALL, tmp_path / "1", dataset=digits)
    again, _ = train(SMALL, tmp_path / "2", dataset=digits)
    other, _ = train(SMALL.model_copy(update={"seed": 1}), tmp_path / "3", dataset=digits)
    files = sorted(path.name for path in first.iterdir())
    assert files == ["README.md", "model.json", "model.py", "model.safetensors", "training.json"]
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


class Speaks(FolderContext):
    """Counts signs of life, and notes what was announced."""

    signs = 0
    said: tuple[float, ...] = ()

    def check(self) -> None:
        self.signs += 1

    def allow(self, times: float = 1.0) -> None:
        self.said += (times,)


def test_every_micro_batch_is_a_sign_of_life(numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping.Keeper, "wait", lambda keeper: None)  # whose signs, if any, depend on how fast the disk is
    signs = []
    for pieces in (1, 4):
        context = Speaks(tmp_path / str(pieces) / "work")
        train(simple(epochs=1, micro_batches=pieces), tmp_path / str(pieces), context, dataset=numbers, code=CODE)
        signs.append(context.signs)
    rows = Dataset.open(numbers.view.local()).rows("train")
    assert signs[1] - signs[0] == 3 * -(-rows // 32)
    assert context.said == (10, 1, 10, 1, 1, 10)  # loading; reading; trying; training, an epoch; publishing


class Stops(FolderContext):
    """Asked to stop after the `limit`-th step."""

    limit = 0

    def progress(self, done: int, total: int, unit: str = "steps") -> None:
        self.limit -= 1
        if self.limit == 0:
            raise Cancelled


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(digits, tmp_path):
    config = SMALL.model_copy(update={"epochs": 4})
    whole, uncut = train(config, tmp_path / "whole", dataset=digits)
    context = Stops(tmp_path / "cut" / "work")
    context.limit = 40  # 17 steps an epoch: in the middle of the third
    with pytest.raises(Cancelled):
        train(config, tmp_path / "cut", context, dataset=digits)
    assert context.latest() is not None
    rest, resumed = train(config, tmp_path / "cut", FolderContext(tmp_path / "cut" / "work"), dataset=digits)
    assert [m["step"] for m in resumed.metrics] == [3, 4]
    assert resumed.metrics[-1]["select_loss"] == uncut.metrics[-1]["select_loss"]
    assert all((whole / p.name).read_bytes() == (rest / p.name).read_bytes() for p in whole.iterdir())


def test_the_seed_of_the_project_trains_from_its_file_and_loads_in_plain_pytorch(numbers, tmp_path, monkeypatch):
    folder, context = train(simple(), tmp_path, dataset=numbers, code=CODE)
    assert (folder / "model.py").read_bytes() == (EXAMPLE / "model.py").read_bytes()
    assert context.metrics[-1]["select_loss"] < 0.1 * context.metrics[0]["select_loss"]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    scope: dict = {}
    exec(
        "import torch\n"
        "from model import SimpleModel\n"
        "model = SimpleModel()\n"
        "model.load_state_dict(torch.load('simple_model.pth'))\n"
        "answer = model(torch.full((3, 10), 0.25))\n",
        scope,
    )
    card = ModelCard.load(folder)
    assert (card.task, card.transform, card.inputs[0].name) == ("tabular-regression", {"name": "tensor"}, "x")
    served = TorchEngine(folder, card).forward({"x": np.full((3, 10), 0.25, np.float32)})["output"]
    assert np.abs(served - scope["answer"].detach().numpy()).max() <= 1e-5


def test_training_goes_on_from_a_model_with_its_own_code(numbers, tmp_path):
    first, before = train(simple(epochs=20), tmp_path / "1", dataset=numbers, code=CODE)
    more = simple(epochs=1, lr=1e-6)
    _, after = train(more, tmp_path / "2", dataset=numbers, model=Input("m@1", {}, FolderView(first, "m")))
    assert after.metrics[0]["select_loss"] == pytest.approx(before.metrics[-1]["select_loss"], rel=1e-3)


def test_a_loss_that_is_no_number_stops_with_its_place_and_keeps_the_checkpoint(numbers, tmp_path):
    context = FolderContext(tmp_path / "work")
    wild = {"lr": 1e6, "schedule": "constant", "warmup": 0.0}
    with pytest.raises(Invalid, match=r"became (nan|inf) in step \d+ of epoch 1; training stopped, there is no checkpoint yet"):
        train(simple(**wild), tmp_path, context, dataset=numbers, code=CODE)
    assert context.latest() is None

    train(simple(epochs=1), tmp_path, context, dataset=numbers, code=CODE)
    kept = (context.latest() / "state.safetensors").read_bytes()
    with pytest.raises(
        Invalid, match=r"of epoch 2; training stopped, the checkpoint of epoch 1 is kept.*smaller lr than 1e\+06"
    ):
        train(simple(**wild), tmp_path, context, dataset=numbers, code=CODE)
    assert (context.latest() / "state.safetensors").read_bytes() == kept


def test_a_table_is_classified_through_named_columns(tmp_path):
    iris = imported(tmp_path / "iris", source="sklearn:iris")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))\n"
        "    def forward(self, features):\n        return self.net(features)\n"
    )
    columns = Dataset.open(iris.view.local()).of_type("float")
    part = {"file": "net.py", "name": "Net", "arguments": {"width": 16}, "inputs": columns}
    config = TrainConfig(
        recipe="module", epochs=40, lr=0.01, batch_size=16, module={**part, "loss": "cross-entropy", "transform": "columns"}
    )
    folder, context = train(config, tmp_path, dataset=iris, code=Input("artefact:c", {}, FolderView(tmp_path / "code", "c")))
    card = ModelCard.load(folder)
    transform, engine = transforms.build(card.transform), TorchEngine(folder, card)
    assert [spec.name for spec in transform.signature(engine.signature).inputs] == columns
    flower = transform.after(
        engine.forward(transform.before({name: np.array([v]) for name, v in zip(columns, (5.1, 3.5, 1.4, 0.2), strict=True)}))
    )
    assert flower["label"][0] == b"setosa"
    assert context.metrics[-1]["select_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"module": {"name": "Absent", "inputs": ["x0"]}}, "defines no torch.nn.Module 'Absent'; it defines SimpleModel"),
        ({"module": {"name": "SimpleModel", "file": "other.py", "inputs": ["x0"]}}, "No 'other.py' in the code.*model.py"),
        ({"module": {"name": "SimpleModel", "inputs": ["x0"], "loss": "cross-entropy"}}, "'y' is of type float: use mse"),
        ({"module": {"name": "SimpleModel", "inputs": ["z"]}}, "No feature 'z'"),
        (
            {"module": {"name": "SimpleModel", "inputs": ["x0"], "arguments": {"depth": 2}}},
            "cannot be built with the arguments",
        ),
        (
            {"batch_size": 1, "epochs": 1, "module": {"name": "SimpleModel", "inputs": ["x0", "x1"]}},
            r"forward of SimpleModel failed on an input of shape \[2, 2\]",
        ),
    ],
)
def test_what_does_not_go_together_is_said(numbers, tmp_path, changes, said):
    with pytest.raises((Invalid, NotFound), match=said):
        train(simple(**changes), tmp_path, dataset=numbers, code=CODE)


FRAIL = """
import torch
from torch import nn


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no way back")


class Frail(nn.Module):
    def __init__(self, most, back):
        super().__init__()
        self.most, self.back, self.linear = most, back, nn.Linear(2, 1)

    def forward(self, x):
        if len(x) > self.most:
            raise ValueError("too many for us")
        return self.linear(x) if self.back else Broken.apply(self.linear(x))
"""


@pytest.mark.parametrize(
    ("arguments", "said"), [({"most": 16, "back": True}, "too many for us"), ({"most": 99, "back": False}, "no way back")]
)
def test_what_only_a_whole_micro_batch_shows_is_said_before_the_first_step(numbers, tmp_path, arguments, said):
    """The shapes are found by two rows, forward alone."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text(FRAIL)
    context = FolderContext(tmp_path / "work")
    config = simple(batch_size=32, module={"name": "Frail", "inputs": ["x0", "x1"], "arguments": arguments})
    with pytest.raises(Invalid, match=f"of Frail failed on a micro-batch of 32 rows, before the first step: {said}\n") as told:
        train(config, tmp_path, context, dataset=numbers, code=Input("artefact:c", {}, FolderView(tmp_path / "code", "c")))
    assert "model.py" in told.value.message, "where in the user's code"
    assert context.facts["memory_estimate"]["rows"] == 32
    assert "steps" not in context.facts


def test_a_step_is_told_in_operations(numbers, tmp_path):
    _, context = train(simple(batch_size=32, epochs=1), tmp_path, dataset=numbers, code=CODE)
    facts = context.facts
    assert facts["flops_per_step"] > 2 * 3 * 20
    assert facts["flops_per_second"] > 0
    assert facts["utilisation"] is None, "of a processor nobody knows the peak"


def test_the_learning_rate_rises_then_falls():
    config = TrainConfig(lr=1.0, warmup=0.1)
    rates = [rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[-1] < 0.01
    assert {rate(step, 100, config.model_copy(update={"schedule": "constant"})) for step in range(10, 100)} == {1.0}
    assert all(math.isfinite(value) for value in rates)
    line = [rate(step, 100, config.model_copy(update={"schedule": "linear"})) for step in range(100)]
    assert line[:10] == rates[:10]
    assert line[10:] == pytest.approx([1 - n / 90 for n in range(90)])


def test_the_settings_of_torch_are_put_back(digits, tmp_path, two_threads):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert before == (2, False)
    train(SMALL.model_copy(update={"epochs": 1}), tmp_path, dataset=digits)
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    shutil.rmtree(tmp_path)
