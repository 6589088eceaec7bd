"""Attacks with models: weights that are programs, graphs that read elsewhere, headers that lie. The parsers run here without a
sandbox, where a canary that came alive would be seen; a choice of the same goes through a real platform."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
import torch
from attack_scene import yard_folder, yard_owner  # noqa: F401 - fixtures
from attack_tools import MATRIX, SOURCE, matmul
from onnx import TensorProto, helper, numpy_helper

from modelyard.client import Yard
from modelyard.engines.onnx import check, signature_of
from modelyard.engines.torch import read_weights
from modelyard.errors import Crashed, Invalid, Unsafe

# 9: weights that are programs


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def bombs(folder: Path, command: str) -> list[Path]:
    """Files of every way to smuggle a program in as weights."""
    bomb = Bomb(command)
    (folder / "plain.pth").write_bytes(pickle.dumps({"w": bomb}))
    (folder / "protocol0.pt").write_bytes(pickle.dumps(bomb, protocol=0))
    (folder / "second.pth").write_bytes(pickle.dumps({}) + pickle.dumps(bomb))
    torch.save({"w": torch.zeros(1), "x": bomb}, folder / "torch.pth")
    torch.save({"w": bomb}, folder / "old.pt", _use_new_zipfile_serialization=False)
    joblib.dump({"w": bomb}, folder / "joblib.pth")
    joblib.dump({"w": bomb}, folder / "packed.pth", compress=3)
    np.save(folder / "objects.npy", np.array([bomb], dtype=object), allow_pickle=True)
    (folder / "objects.npy").rename(folder / "npy.pth")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "torchscript.pt"))
    torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(bomb))
    with zipfile.ZipFile(folder / "repeated.pth", "w") as archive:
        for data in (pickle.dumps({}), pickle.dumps(bomb)):
            archive.writestr("a/data.pkl" if data == pickle.dumps({}) else "b/data.pkl", data)
        archive.writestr("a/version", "3\n")
        link = zipfile.ZipInfo("a/../../../link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(folder / "packed-zip.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps(bomb))
        archive.writestr("a/data/0", b"\0" * 10_000_000)
    return sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".pt", ".safetensors"))


def test_no_weights_run_when_they_are_read(tmp_path: Path) -> None:
    files = bombs(tmp_path, f"touch {tmp_path}/canary")
    assert len(files) >= 13
    for path in files:
        with pytest.raises(Invalid):
            read_weights(path)
        assert not (tmp_path / "canary").exists(), path.name
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert (tmp_path / "canary").exists(), "the bomb is a dud: this test could not fail"


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of bombs that print."""
    folder = tmp_path_factory.mktemp("bombs")
    bombs(folder, "echo CANARY-ALIVE")
    return folder


@pytest.mark.parametrize("name", ["plain.pth", "torch.pth", "old.pt", "joblib.pth", "npy.pth", "torchscript.pt", "second.pth"])
def test_no_weights_run_on_the_platform(owner: Yard, echoes: Path, tmp_path: Path, name: str) -> None:
    """In the sandbox no file would tell; what a program prints would be in the job's log."""
    (tmp_path / "model.py").write_text(SOURCE)
    with pytest.raises(Unsafe, match=r"refused|TorchScript|zip"):
        owner.import_model("bomb", echoes / name, module=f"{tmp_path / 'model.py'}:M")
    assert "CANARY-ALIVE" not in "".join(owner.logs(owner.jobs()[0]["id"]))
    assert "bomb" not in [model["name"] for model in owner.models()]


@pytest.mark.parametrize(
    "ending", [".pkl", ".joblib", ".npy", ".npz", ".pt2", ".keras", ".h5", ".bin", ".zip", ".tar", ".onnx", ".csv"]
)
def test_other_files_of_a_bomb_are_refused(owner: Yard, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"bomb{ending}"
    file.write_bytes(pickle.dumps(Bomb("echo CANARY-ALIVE")))
    with pytest.raises(Invalid):
        _ = owner.import_dataset("bomb", file) if ending == ".csv" else owner.import_model("bomb", file)
    assert "CANARY-ALIVE" not in "".join(owner.logs(owner.jobs()[0]["id"]))


# 10: graphs that read elsewhere

ELSEWHERE = (
    {"location": "../../../../etc/passwd"}, {"location": "/etc/passwd"}, {"location": "a/../../w"}, {"location": ""}, {},
    {"location": "w\0"}, {"location": "link"}, {"location": "hard"}, {"location": "folder"}, {"location": "link/w"},
    {"location": "fifo"}, {"location": "w", "offset": "-8"}, {"location": "w", "offset": str(2**63)}, {"location": "..\\w"},
    {"location": "w", "length": str(2**64)}, {"location": "w", "offset": "8", "length": "24"},
    {"location": "w", "offset": "1e3"}, {"location": "w", "length": "-1"},
)  # fmt: skip


def outside(folder: Path) -> None:
    (folder / "w").write_bytes(MATRIX.tobytes())
    (folder / "folder").mkdir()
    (folder / "folder" / "w").write_bytes(MATRIX.tobytes())
    (folder / "link").symlink_to("/etc/passwd")
    os.link(folder / "w", folder.parent / f"{folder.name}-other")
    (folder / "w").rename(folder / "hard")
    (folder / "w").write_bytes(MATRIX.tobytes())
    os.mkfifo(folder / "fifo")


@pytest.mark.parametrize("facts", ELSEWHERE, ids=str)
def test_a_graph_reads_nothing_elsewhere(tmp_path: Path, facts: dict[str, str]) -> None:
    outside(tmp_path)
    path = matmul(tmp_path / "m.onnx", facts)
    for read in (check, signature_of):
        with pytest.raises((Unsafe, Invalid)):
            read(path)


def test_a_tensor_hidden_deep_reads_nothing_elsewhere(tmp_path: Path) -> None:
    hidden = numpy_helper.from_array(MATRIX, "w")
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../../etc/passwd")
    constant = helper.make_node("Constant", [], ["w"], value=hidden)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2])])
    within = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    function = helper.make_function("mine", "F", [], ["w"], [constant], [helper.make_opsetid("", 17)])
    sparse = onnx.SparseTensorProto(values=hidden, indices=numpy_helper.from_array(np.zeros((1, 2), np.int64)), dims=[3, 2])
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])]
    condition = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([within], "g", condition, out)
    call = helper.make_graph([helper.make_node("F", [], ["y"], domain="mine")], "g", [], out)
    models = [
        helper.make_model(graph),
        helper.make_model(
            call, functions=[function], opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        ),
        helper.make_model(helper.make_graph([], "g", [], out, sparse_initializer=[sparse])),
    ]
    for model in models:
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(Unsafe):
            check(tmp_path / "m.onnx")


def test_the_platform_refuses_such_graphs_and_custom_operators(owner: Yard, tmp_path: Path) -> None:
    for facts in ELSEWHERE[:2]:
        with pytest.raises(Unsafe):
            owner.import_model("elsewhere", matmul(tmp_path / "m.onnx", facts))
    node = helper.make_node("Evil", ["x"], ["y"], domain="evil.library")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    custom = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("evil.library", 1)], ir_version=8)  # fmt: skip
    custom.metadata_props.add(key="ort_custom_ops_library", value=str(tmp_path / "evil.so"))
    (tmp_path / "m.onnx").write_bytes(custom.SerializeToString())
    with pytest.raises(Invalid):
        owner.import_model("custom", tmp_path / "m.onnx")


# 11: headers that lie

CHILD = """
import gc, json, os, random, resource, signal, struct, sys
from pathlib import Path
from modelyard.engines.onnx import OnnxEngine, check, signature_of
from modelyard.engines.torch import read_weights
from modelyard.errors import ModelyardError
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
folder, cases = Path(sys.argv[1]), int(sys.argv[2])
seeds = {name: (folder / name).read_bytes() for name in ("seed.onnx", "seed.safetensors", "seed.pth")}
numbers = [0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
said = {}
def mutate(data, dice):
    data = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at, how = dice.randrange(min(len(data), 400)), dice.randrange(5)
        if how == 0: data[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << dice.randrange(8)])
        elif how == 1: data[at:at + 8] = struct.pack("<Q", dice.choice(numbers))
        elif how == 2: del data[at:at + dice.randint(1, 40)]
        elif how == 3: data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 12)))
        else: data[at:at] = data[max(0, at - 30):at]
        if not data: data = bytearray(b"x")
    return bytes(data)
check(folder / "seed.onnx")  # what the parsers load is loaded once, here
for name in ("seed.safetensors", "seed.pth"): read_weights(folder / name)
gc.collect()
gc.freeze()
for case in [*range(cases), 3418, 4971]:  # the last two were found to end a parser with an error of its own
    dice = random.Random(case)
    name = dice.choice(sorted(seeds))
    path = folder / f"case{Path(name).suffix}"
    path.write_bytes(mutate(seeds[name], dice))
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            if path.suffix == ".onnx": signature_of(path)
            else: read_weights(path)
            os._exit(0)
        except ModelyardError: os._exit(1)
        except MemoryError: os._exit(2)
        except BaseException as error:
            sys.stderr.write(f"case {case} of {name}: {error!r}\\n")
            os._exit(3)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    said.setdefault(f"{name} {code}", []).append(case)
    assert used.ru_maxrss < 2 << 20, (case, used.ru_maxrss)
print(json.dumps(said))
"""


def test_mutated_headers_are_refused_by_parsers_that_stay_small(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    matmul(tmp_path / "seed.onnx")
    save_file({"w": torch.zeros(3, 2), "b": torch.ones(4)}, tmp_path / "seed.safetensors")
    torch.save({"w": torch.zeros(3, 2)}, tmp_path / "seed.pth")
    run = [sys.executable, "-c", CHILD, str(tmp_path), "600"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    print({what: len(cases) for what, cases in said.items()})
    wrong = {what: cases[:5] for what, cases in said.items() if int(what.split()[1]) not in (0, 1)}
    assert not wrong, done.stderr[-3000:]


def test_the_platform_lives_through_lying_headers(owner: Yard, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SOURCE)
    lies = {
        "length.safetensors": (2**63).to_bytes(8, "little") + b"{}",
        "offsets.safetensors": _safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}}),
        "shape.safetensors": _safetensors({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}),
        "dims.onnx": matmul(tmp_path / "dims.onnx").read_bytes().replace(b"\x08\x03\x08\x02", b"\x08\x7f\x08\x7f"),
        "cut.onnx": matmul(tmp_path / "cut.onnx").read_bytes()[:-20],
    }
    for name, data in lies.items():
        (tmp_path / name).write_bytes(data)
        module = None if name.endswith(".onnx") else f"{tmp_path / 'model.py'}:M"
        with pytest.raises((Invalid, Crashed)):
            owner.import_model("lies", tmp_path / name, module=module)
    answer = owner.predict("matmul", inputs={"x": np.ones((1, 3), np.float32)})
    assert answer["y"].tolist() == [[6.0, 9.0]]


def _safetensors(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0\0\0\0"
