"""Replicas on another machine of the cluster: one that shares a folder with this one, and a cable, and nothing else."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from jobs_bench import eventually
from onnx import TensorProto, helper, numpy_helper
from ray_machines import HERE, PORT, THERE, TOKEN, Other, machines, possible

from modelyard.client import Yard
from modelyard.testing import yard

pytestmark = pytest.mark.skipif(
    not possible(), reason="another machine takes root, unshare, nsenter, ip, mount, openssl, bwrap"
)
RNG = np.random.default_rng(0)
LARGE = RNG.normal(size=(163_840, 16)).astype(np.float32)  # 10 MiB
Row = tuple[str, str, str, int]


def graph(folder: Path) -> Path:
    """16 → 4 with a tanh, as an .onnx file."""
    weights = numpy_helper.from_array(RNG.normal(size=(16, 4)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 16), ("y", 4))]
    made = helper.make_graph(nodes, "small", ends[:1], ends[1:], [weights])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "small.onnx")
    return folder / "small.onnx"


class Scene:
    """A platform with two replicas of one deployment, 'small'."""

    def __init__(self, platform: Yard, other: Other, folder: Path) -> None:
        self.platform, self.other, self.data = platform, other, folder / "yard"
        self.session = onnxruntime.InferenceSession(folder / "small.onnx", providers=["CPUExecutionProvider"])
        self.calls = self.rows = 0

    def replicas(self, state: str = "ready") -> list[Row]:
        """token, state, address and pid of each."""
        with contextlib.closing(sqlite3.connect(self.data / "modelyard.db", timeout=30)) as database:
            return database.execute("SELECT token, state, address, pid FROM replicas WHERE state = ?", (state,)).fetchall()

    def remote(self) -> list[Row]:
        return [row for row in self.replicas() if row[2].startswith(f"tls://{THERE}:")]

    def local(self) -> list[Row]:
        return [row for row in self.replicas() if row[2].startswith("/")]

    def process(self, token: str) -> int:
        """The number of a replica's own process on the other machine, as this one knows it."""
        found = []
        for pid in self.other.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text()
                if token in words and "modelyard.serving.replica" in words and not words.startswith("bwrap"):
                    found.append(pid)
        return max(found)

    def call(self, x: np.ndarray) -> None:
        """One call that must be answered as onnxruntime answers it."""
        answer = self.platform.predict("small", {"x": x})["y"]
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        np.testing.assert_allclose(answer, self.session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)

    def call_often(self, times: int) -> None:
        for number in range(times):
            self.call(LARGE[number : number + 1 + number % 3])

    def usage(self) -> tuple[int, int]:
        rows = [row for row in self.platform.usage() if row.get("model") == "small"]
        return sum(int(row["calls"]) for row in rows), sum(int(row["units"]) for row in rows)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("m")
    with machines(folder) as other, yard(folder / "yard", "--cluster", f"{HERE}:{PORT}", **TOKEN) as platform:
        platform.import_model("small", graph(folder))
        made = Scene(platform, other, folder)
        platform.deploy("small", "small", min_replicas=2, max_replicas=2)
        eventually(lambda: len(made.replicas()) == 2)
        yield made


def test_two_replicas_are_on_two_machines_and_both_answer(scene: Scene) -> None:
    assert (len(scene.local()), len(scene.remote())) == (1, 1), scene.replicas()
    scene.call_often(50)
    scene.call(LARGE)
