from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny_models import MATRIX, matmul, save

from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.from_onnx import read
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import FolderContext

CONFIG = ImportModelConfig()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    return tmp_path / "out"


def test_external_data_travels_with_the_graph(out: Path) -> None:
    upload = out.parent / "in"
    matmul(upload / "m.onnx", external="parts/w.bin")
    (upload / "parts").mkdir()
    (upload / "parts" / "w.bin").write_bytes(MATRIX.tobytes())
    card, facts = read(CONFIG, upload / "m.onnx", upload, out, FolderContext(out.parent))
    assert (out / "parts" / "w.bin").read_bytes() == MATRIX.tobytes()
    assert facts == {"format": "onnx", "notes": []}
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(OnnxEngine(out, card).forward({"x": x})["y"], x @ MATRIX)


@pytest.mark.parametrize("location", ["model.json", "README.md", "Model.onnx"])
def test_external_data_cannot_pose_as_a_file_of_the_version(out: Path, location: str) -> None:
    upload = out.parent / "in"
    matmul(upload / "m.onnx", external=location)
    (upload / location).write_bytes(MATRIX.tobytes())
    with pytest.raises(Unsafe, match="a file of every version"):
        read(CONFIG, upload / "m.onnx", upload, out, FolderContext(out.parent))


def test_external_data_of_someone_else_is_not_copied(out: Path) -> None:
    upload = out.parent / "in"
    (out.parent / "secret").write_bytes(MATRIX.tobytes())
    matmul(upload / "m.onnx", external="../secret")
    with pytest.raises(Unsafe):
        read(CONFIG, upload / "m.onnx", upload, out, FolderContext(out.parent))
    assert list(out.iterdir()) == []


def test_a_fixed_batch_is_allowed_and_kept(out: Path) -> None:
    path = out.parent / "in" / "m.onnx"
    matmul(path, batch=4)
    card, _ = read(CONFIG, path, path.parent, out, FolderContext(out.parent))
    assert card.inputs[0].shape == (4, 3)


def test_an_output_whose_dim_0_is_not_the_batch_is_refused(out: Path) -> None:
    path = out.parent / "in" / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    save(graph, path)
    with pytest.raises(Invalid, match="dim 0 must be the batch"):
        read(CONFIG, path, path.parent, out, FolderContext(out.parent))


def mixing(path: Path, *before: object) -> Path:
    """y = softmax over dim 0 of x."""
    graph = helper.make_graph(
        [*before, helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        "mixing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    save(graph, path)
    return path


def test_a_graph_that_mixes_rows_is_refused(out: Path) -> None:
    path = mixing(out.parent / "in" / "m.onnx")
    with pytest.raises(Invalid, match="follows from the rows beside it"):
        read(CONFIG, path, path.parent, out, FolderContext(out.parent))


def test_a_constant_given_as_an_input_is_no_batch(out: Path) -> None:
    path = out.parent / "in" / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["y"])],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    save(graph, path)
    card, _ = read(CONFIG, path, path.parent, out, FolderContext(out.parent))
    assert [spec.shape for spec in card.inputs] == [(-1, 3), (3,)]


def test_what_is_quantised_by_the_batch_may_follow_from_it(out: Path) -> None:
    path = mixing(out.parent / "in" / "m.onnx", helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    read(CONFIG, path, path.parent, out, FolderContext(out.parent))


def test_a_graph_that_does_not_hold_together_is_refused(out: Path) -> None:
    path = out.parent / "in" / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["nowhere"], ["y"])],
        "broken",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    save(graph, path)
    with pytest.raises(Invalid, match=r"'m\.onnx' is not a valid ONNX model"):
        read(CONFIG, path, path.parent, out, FolderContext(out.parent))


def test_a_graph_that_fails_on_its_own_shapes_is_refused(out: Path) -> None:
    path = out.parent / "in" / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "wrong",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [5, 5])],
    )
    save(graph, path)
    with pytest.raises(Invalid, match="does not run on inputs of the shapes it states"):
        read(CONFIG, path, path.parent, out, FolderContext(out.parent))


def test_what_is_for_weights_is_not_for_graphs(out: Path) -> None:
    path = out.parent / "in" / "m.onnx"
    matmul(path)
    for config in (ImportModelConfig(module="m.py:M"), ImportModelConfig(inputs=("x:FP32[-1,3]",))):
        with pytest.raises(Invalid, match="states its own inputs"):
            read(config, path, path.parent, out, FolderContext(out.parent))
