from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import MATRIX, matmul, save

from modelyard.conversion.cards import tensor_cards
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine, check, external_files, signature_of
from modelyard.errors import Invalid, Unsafe
from modelyard.tensors import TensorSpec
from modelyard.testing import FAKE_CARD


def test_answers_by_output_name(tmp_path: Path) -> None:
    engine = OnnxEngine(tmp_path, matmul(tmp_path / "m.onnx"))
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    x.setflags(write=False)
    answer = engine.forward({"x": x})
    assert list(answer) == ["y"]
    np.testing.assert_allclose(answer["y"], x @ MATRIX)


def test_text_goes_in_and_out_as_bytes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["u"])],
        "text",
        [helper.make_tensor_value_info("t", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("u", TensorProto.STRING, ["n"])],
    )
    save(graph, tmp_path / "t.onnx")
    text = TensorCard(name="t", datatype="BYTES", shape=(-1,))
    card = ModelCard(
        task="feature-extraction",
        engines=("onnx",),
        files={"onnx": "t.onnx"},
        inputs=(text,),
        outputs=(text.changed(name="u"),),
    )
    given = np.array(["grüße".encode(), b""], dtype=object)
    assert OnnxEngine(tmp_path, card).forward({"t": given})["u"].tolist() == given.tolist()


def test_text_that_is_not_utf8_is_the_callers_fault(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["u"])],
        "text",
        [helper.make_tensor_value_info("t", TensorProto.STRING, ["n", 2])],
        [helper.make_tensor_value_info("u", TensorProto.STRING, ["n", 2])],
    )
    save(graph, tmp_path / "t.onnx")
    signature, _ = signature_of(tmp_path / "t.onnx")
    card = ModelCard(
        task="feature-extraction",
        engines=("onnx",),
        files={"onnx": "t.onnx"},
        inputs=tensor_cards(signature.inputs),
        outputs=tensor_cards(signature.outputs),
    )
    given = np.array([[b"a", b"b"], [b"c", b"ab\xff"], [b"\xff", b""]], dtype=object)
    with pytest.raises(Invalid, match=r"Row 1 of 't': byte 2 is not UTF-8 text"):
        OnnxEngine(tmp_path, card).forward({"t": given})


def test_the_session_is_single_threaded_and_does_not_spin(tmp_path: Path) -> None:
    options = OnnxEngine(tmp_path, matmul(tmp_path / "m.onnx"))._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert OnnxEngine(tmp_path, matmul(tmp_path / "m.onnx"), threads=2)._session.get_session_options().intra_op_num_threads == 2


def test_signature_is_read_from_the_graph(tmp_path: Path) -> None:
    matmul(tmp_path / "open.onnx")
    signature, skipped = signature_of(tmp_path / "open.onnx")
    assert signature.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert signature.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    assert skipped == ()
    matmul(tmp_path / "fixed.onnx", batch=4)
    assert signature_of(tmp_path / "fixed.onnx")[0].inputs[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("what", "change", "said"),
    [
        ("inputs", {"name": "z"}, r"states the input z:FP32\[-1, 3\], but the graph's inputs are x:FP32\[-1, 3\]"),
        ("inputs", {"datatype": "FP64"}, r"x:FP64"),
        ("inputs", {"shape": (-1, 4)}, r"x:FP32\[-1, 4\]"),
        ("inputs", {"shape": (-1,)}, r"x:FP32\[-1\]"),
        ("outputs", {"name": "label"}, r"states the output label"),
    ],
)
def test_a_card_that_differs_from_the_graph_is_refused(tmp_path: Path, what: str, change: dict, said: str) -> None:
    card = matmul(tmp_path / "m.onnx")
    (tensor,) = getattr(card, what)
    wrong = card.changed(**{what: (tensor.changed(**change),)})
    with pytest.raises(Invalid, match=said):
        OnnxEngine(tmp_path, wrong)


def test_a_card_may_state_less_than_the_graph_knows_but_all_inputs(tmp_path: Path) -> None:
    card = matmul(tmp_path / "m.onnx")
    vague = card.changed(inputs=(TensorCard(name="x", datatype="FP32"),))
    assert OnnxEngine(tmp_path, vague).signature.inputs[0].shape is None
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "add",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "ab"],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n"])],
    )
    save(graph, tmp_path / "add.onnx")
    a, c = (TensorCard(name=n, datatype="FP32", shape=(-1,)) for n in "ac")
    partial = ModelCard(task="feature-extraction", engines=("onnx",), files={"onnx": "add.onnx"}, inputs=(a,), outputs=(c,))
    with pytest.raises(Invalid, match="also takes b"):
        OnnxEngine(tmp_path, partial)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\xff\xff\xff", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(Invalid, match=r"m\.onnx"):
        check(tmp_path / "m.onnx")
    with pytest.raises(Invalid, match=r"m\.onnx"):
        OnnxEngine(tmp_path, FAKE_CARD.changed(files={"onnx": "m.onnx"}))


def test_unknown_operators_are_refused_without_paths(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Surprise", ["x"], ["y"], domain="evil")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("evil", 1)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Invalid, match="onnxruntime refuses") as caught:
        signature_of(tmp_path / "m.onnx")
    assert str(tmp_path) not in caught.value.message


def test_external_data_inside_the_folder_is_read(tmp_path: Path) -> None:
    card = matmul(tmp_path / "m.onnx", external="data/w.bin")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(MATRIX.tobytes())
    assert external_files(check(tmp_path / "m.onnx")) == {"data/w.bin"}
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(OnnxEngine(tmp_path, card).forward({"x": x})["y"], x @ MATRIX)


def test_external_data_that_names_no_file_is_refused(tmp_path: Path) -> None:
    """The engine looks for external data by its key 'location': where that is missing nothing may be read."""
    card = matmul(tmp_path / "m.onnx", external="w.bin")
    (tmp_path / "w.bin").write_bytes(MATRIX.tobytes())
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in [entry for entry in tensor.external_data if entry.key == "location"]:
            tensor.external_data.remove(entry)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Invalid, match="onnxruntime refuses"):
        OnnxEngine(tmp_path, card)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "data/../../secret", "", "a\\b"])
def test_external_data_outside_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(MATRIX.tobytes())
    (tmp_path / "in").mkdir()
    matmul(tmp_path / "in" / "m.onnx", external=location)
    with pytest.raises(Unsafe, match="not a path inside"):
        check(tmp_path / "in" / "m.onnx")


def test_external_data_behind_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(MATRIX.tobytes())
    folder = tmp_path / "in"
    folder.mkdir()
    matmul(folder / "m.onnx", external="w.bin")
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(Unsafe, match="is a link"):
        check(folder / "m.onnx")
    (folder / "w.bin").unlink()
    os.link(tmp_path / "secret", folder / "w.bin")
    with pytest.raises(Unsafe, match="hard link"):
        check(folder / "m.onnx")


def test_external_data_past_the_end_is_refused(tmp_path: Path) -> None:
    matmul(tmp_path / "m.onnx", external="w.bin")
    (tmp_path / "w.bin").write_bytes(MATRIX.tobytes()[:-1])
    with pytest.raises(Unsafe, match="past the end"):
        check(tmp_path / "m.onnx")


def test_external_data_is_found_in_sub_graphs(tmp_path: Path) -> None:
    hidden = onnx.TensorProto(name="h", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../../secret")
    inner = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["o"])],
        "inner",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])],
        [hidden],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        "outer",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    save(graph, tmp_path / "m.onnx")
    with pytest.raises(Unsafe, match="not a path inside"):
        check(tmp_path / "m.onnx")


def test_onnxruntime_is_told_to_call_nobody_before_it_is_imported() -> None:
    """It decides at its import; afterwards the variable would come too late."""
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_card_must_name_the_file(tmp_path: Path) -> None:
    card = matmul(tmp_path / "m.onnx").changed(files={})
    with pytest.raises(Invalid, match=r"files\.onnx"):
        OnnxEngine(tmp_path, card)
