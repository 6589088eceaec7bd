"""LiteRT files: what cannot be one is refused by name, and one from elsewhere is a version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import matmul

from modelyard.conversion.base import CONVERTERS
from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.from_litert import read
from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.engines.litert import LiteRtEngine
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import FolderContext

SOURCE = """\
import torch
from torch import nn


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(3, 2, bias=False)


class Deciding(Scaled):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)
"""
ROWS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def version(folder: Path, name: str) -> ModelCard:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(SOURCE)
    torch.save({"weight": torch.arange(6.0).reshape(2, 3)}, folder / "model.pth")
    return ModelCard(
        task="tabular-regression",
        engines=("torch",),
        files={"weights": "model.pth"},
        module=ModuleCard(file="model.py", name=name),
        inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, 2)),),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.tflite`: y = x Wᵀ."""
    folder, out = tmp_path_factory.mktemp("version"), tmp_path_factory.mktemp("made")
    CONVERTERS.get("litert").convert(folder, version(folder, "Scaled"), out, {"x": ROWS})
    return out


def test_one_from_elsewhere_is_read_and_tried(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    card, facts = read(ImportModelConfig(), made / "model.tflite", made, out, FolderContext(tmp_path / "work"))
    assert (card.engines, card.inputs[0].shape, facts["format"]) == (("litert",), (-1, 3), "litert")
    answers = LiteRtEngine(out, card).forward({"x": ROWS})
    np.testing.assert_allclose(answers["y"], ROWS @ np.arange(6.0, dtype=np.float32).reshape(2, 3).T, rtol=1e-5)


def test_it_states_its_own_inputs(made: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="leave out module"):
        read(ImportModelConfig(inputs=("x:FP32[-1,3]",)), made / "model.tflite", made, tmp_path, FolderContext(tmp_path / "w"))


def test_what_follows_its_input_s_values_is_refused(tmp_path: Path) -> None:
    card = version(tmp_path / "in", "Deciding")
    with pytest.raises(Invalid, match=r"Deciding cannot be converted to LiteRT: .+"):
        CONVERTERS.get("litert").convert(tmp_path / "in", card, tmp_path, {"x": ROWS})


def test_the_library_stays_out_of_who_converts(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_conversion_litert import ROWS, version
from modelyard.conversion.base import CONVERTERS
folder = Path({str(tmp_path)!r})
card = version(folder / "in", "Scaled")
CONVERTERS.get("litert").convert(folder / "in", card, folder, {{"x": ROWS}})
assert (folder / "model.tflite").is_file()
assert not [name for name in sys.modules if name.partition(".")[0] in ("jax", "litert_torch")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_converter_that_dies_is_told(tmp_path: Path) -> None:
    card = version(tmp_path / "in", "Scaled")
    (tmp_path / "in" / "model.py").write_text("import os\nos._exit(0)\n")
    with pytest.raises(Invalid, match="Scaled cannot be converted to LiteRT: its converter died"):
        CONVERTERS.get("litert").convert(tmp_path / "in", card, tmp_path, {"x": ROWS})


def test_a_graph_alone_is_refused(tmp_path: Path) -> None:
    card = matmul(tmp_path / "m.onnx")
    with pytest.raises(Invalid, match="made of a PyTorch module"):
        CONVERTERS.get("litert").convert(tmp_path, card, tmp_path, {"x": ROWS})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": {"onnx": "model.tflite"}}, r"files\.litert"),
        ({"files": {"litert": "missing.tflite"}}, "no file"),
        ({"inputs": (TensorCard(name="z", datatype="FP32", shape=(-1, 3)),)}, r"z:FP32\[-1, 3\]"),
        ({"inputs": (TensorCard(name="x", datatype="FP64", shape=(-1, 3)),)}, r"x:FP64"),
    ],
)
def test_a_card_that_is_wrong_is_refused_before_the_first_call(made: Path, fields: dict, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        LiteRtEngine(made, ModelCard.load(made).changed(**fields))


def test_a_file_outside_is_refused(made: Path) -> None:
    with pytest.raises(Unsafe):
        LiteRtEngine(made, ModelCard.load(made).changed(files={"litert": "../model.tflite"}))


CHILD = """
import os, random, signal, sys
from pathlib import Path
import numpy as np
from modelyard.engines.base import ModelCard
from modelyard.engines.litert import LiteRtEngine
from modelyard.errors import ModelyardError
made, folder = map(Path, sys.argv[1:])
whole, card, rows = (made / "model.tflite").read_bytes(), ModelCard.load(made), np.ones((5, 3), np.float32)
for case in range(150):
    dice, data = random.Random(case), bytearray(whole)
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(len(data))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF])
    (folder / "model.tflite").write_bytes(data[:dice.choice([len(data), dice.randrange(1, len(data))])])
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        try:
            LiteRtEngine(folder, card).forward({"x": rows})
        except (ModelyardError, RuntimeError, ValueError):
            pass
        except BaseException as error:
            sys.stderr.write(f"case {case}: {error!r}\\n")
            os._exit(3)
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) != 3, case
    assert used.ru_maxrss < 2 << 20, (case, used.ru_maxrss)
"""


def test_files_that_lie_end_no_more_than_a_process(made: Path, tmp_path: Path) -> None:
    """A reader of flatbuffers trusts offsets, and may be ended by a wrong one: it is run where that costs nothing else."""
    run = [sys.executable, "-c", CHILD, str(made), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
