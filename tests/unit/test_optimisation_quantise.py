from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator, load_tensors_data
from tiny_models import matmul, save

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid
from modelyard.optimisation import sensitive
from modelyard.optimisation.quantise import QUANTISERS, prepared
from modelyard.optimisation.steps.config import Quantize

RANDOM = np.random.default_rng(0)


def network(path: Path, *, convolve: bool) -> tuple[ModelCard, dict[str, np.ndarray]]:
    """A layer large enough for eight bits to make it smaller, x → y FP32 [-1, 8, …]."""
    if convolve:
        node, shape = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), ["n", 4, 6, 6]
        weights, out = RANDOM.standard_normal((8, 4, 3, 3)), ["n", 8, 6, 6]
    else:
        node, shape = helper.make_node("MatMul", ["x", "w"], ["y"]), ["n", 64]
        weights, out = RANDOM.standard_normal((64, 8)), ["n", 8]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    save(graph, path)
    x, y = (TensorCard(name=name, datatype="FP32", shape=(-1, *dims[1:])) for name, dims in (("x", shape), ("y", out)))
    card = ModelCard(task="feature-extraction", engines=("onnx",), files={"onnx": path.name}, inputs=(x,), outputs=(y,))
    return card, {"x": RANDOM.standard_normal((50, *shape[1:])).astype(np.float32)}


@pytest.mark.parametrize("convolve", [True, False])
@pytest.mark.parametrize("name", QUANTISERS)
def test_eight_bits_answer_nearly_the_same(tmp_path: Path, name: str, convolve: bool) -> None:
    card, samples = network(tmp_path / "model.onnx", convolve=convolve)
    QUANTISERS[name](tmp_path / "model.onnx", tmp_path / "small.onnx", samples)
    wanted = OnnxEngine(tmp_path, card).forward(samples)["y"]
    given = OnnxEngine(tmp_path, card.changed(files={"onnx": "small.onnx"})).forward(samples)["y"]
    assert 0 < np.abs(given - wanted).max() < 0.1 * np.abs(wanted).max()
    kinds = {initial.data_type for initial in onnx.load(tmp_path / "small.onnx").graph.initializer if len(initial.dims) > 1}
    assert kinds <= {TensorProto.INT8, TensorProto.UINT8}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "small.onnx"]


def test_ranges_come_from_the_calibration_rows(tmp_path: Path) -> None:
    card, samples = network(tmp_path / "model.onnx", convolve=False)
    QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", {"x": samples["x"] / 100})
    given = OnnxEngine(tmp_path, card.changed(files={"onnx": "small.onnx"})).forward(samples)["y"]
    assert np.abs(given).max() < 0.1 * np.abs(OnnxEngine(tmp_path, card).forward(samples)["y"]).max()


def test_static_weights_leave_a_bit_for_older_processors(tmp_path: Path) -> None:
    _, samples = network(tmp_path / "model.onnx", convolve=False)
    QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", samples)
    initials = onnx.load(tmp_path / "small.onnx").graph.initializer
    (weights,) = (numpy_helper.to_array(i) for i in initials if i.data_type == TensorProto.INT8 and len(i.dims) == 2)
    assert np.abs(weights.astype(int)).max() <= 64


def test_failures_are_told_and_logging_is_as_it_was(tmp_path: Path) -> None:
    matmul(tmp_path / "model.onnx")
    with pytest.raises(Invalid, match=r"cannot quantise this model: .*Unexpected input data type"):
        QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", {"x": np.ones((1, 3), np.float64)})
    assert logging.root.manager.disable == logging.NOTSET
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("rows", [{"z": np.ones((1, 3), "f")}, {"x": np.ones((1, 4), "f")}, {"x": np.ones(3, "f")}, {}])
def test_rows_of_another_shape_are_refused_with_both_shapes(tmp_path: Path, rows: dict[str, np.ndarray]) -> None:
    matmul(tmp_path / "model.onnx")
    with pytest.raises(Invalid, match=r"The model takes 'x' \[-1, 3\]; the rows of calibration are"):
        QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", rows)


class Whole(CalibrationDataReader):
    """All rows in one chunk."""

    def __init__(self, samples: dict[str, np.ndarray]) -> None:
        self.left = [samples]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def two_layers(path: Path, operator: str = "MatMul") -> dict[str, np.ndarray]:
    """x → `tame` → relu → `wild` → y; in `wild` one weight of each output is a thousand times as large as the others."""
    bias = ["bias"] if operator == "Gemm" else []
    tame, wild = (RANDOM.standard_normal((16, 16)).astype("f") for _ in range(2))
    wild[0] *= 1000
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["x", "tame.weight", *bias], ["a"], "one"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node(operator, ["b", "wild.weight", *bias], ["y"], "two"),
        ],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(tame, "tame.weight"), numpy_helper.from_array(wild, "wild.weight")]
        + [numpy_helper.from_array(np.ones(16, "f"), name) for name in bias],
    )
    save(graph, path)
    rows = RANDOM.standard_normal((24, 16)).astype("f")
    rows[:, 0] = 0  # so that what is large counts for little
    return {"x": rows}


def quantised(tmp_path: Path, rows: dict[str, np.ndarray], step: Quantize, *, alike: bool = True) -> tuple[list, dict, set]:
    """What is left in float, the effects, and the layers that have eight bits in the end."""
    with prepared(tmp_path / "model.onnx", tmp_path / "small.onnx", rows, step) as graph:
        left, effects = sensitive.leave_sensitive(graph, tmp_path / "small.onnx", lambda _: alike, lambda: None)
        graph.write(tmp_path / "small.onnx", leave=left)
    floats = {i.name for i in onnx.load(tmp_path / "small.onnx").graph.initializer if i.data_type == TensorProto.FLOAT}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "small.onnx"]
    return left, effects, {name for name in ("tame", "wild") if f"{name}.weight" not in floats}


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("method", ["static-int8", "dynamic-int8", "weights-int8"])
def test_a_named_layer_stays_in_float(tmp_path: Path, method: str, operator: str) -> None:
    rows = two_layers(tmp_path / "model.onnx", operator)
    left, effects, small = quantised(tmp_path, rows, Quantize(method=method, float_layers=("wild",)))
    assert (left, effects, small) == (["wild"], {}, {"tame"})


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("method", ["static-int8", "dynamic-int8", "weights-int8"])
def test_the_layer_that_suffers_most_is_found_by_measuring(tmp_path: Path, method: str, operator: str) -> None:
    rows = two_layers(tmp_path / "model.onnx", operator)
    left, effects, small = quantised(tmp_path, rows, Quantize(method=method, per_channel=False, sensitive=1))
    assert effects.keys() == {"tame", "wild"}
    worst = max(effects, key=effects.__getitem__)
    assert left == [worst]
    assert small == {"tame", "wild"} - {worst}
    assert all(effect > 0 for effect in effects.values())


def test_auto_leaves_as_few_in_float_as_it_takes(tmp_path: Path) -> None:
    rows = two_layers(tmp_path / "model.onnx")
    assert quantised(tmp_path, rows, Quantize(sensitive="auto"))[0] == []
    (tmp_path / "small.onnx").unlink()
    left, effects, _ = quantised(tmp_path, rows, Quantize(sensitive="auto"), alike=False)
    assert left == [max(effects, key=effects.__getitem__)]  # half of the layers at most


def test_layers_that_are_not_there_or_all_of_them_are_refused(tmp_path: Path) -> None:
    rows = two_layers(tmp_path / "model.onnx")
    with pytest.raises(Invalid, match="'wilt' is no layer that eight bits change; did you mean 'wild'"):
        quantised(tmp_path, rows, Quantize(float_layers=("wilt",)))
    with pytest.raises(Invalid, match="'head' is no layer that eight bits change; there are tame, wild"):
        quantised(tmp_path, rows, Quantize(float_layers=("head",)))
    with pytest.raises(Invalid, match="All 2 layers would stay in float"):
        quantised(tmp_path, rows, Quantize(float_layers=("tame",), sensitive=5))


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_each_calibration_finds_ranges_of_its_own(tmp_path: Path, calibration: str) -> None:
    """Of rows with one outlier: min-max keeps it, the others cut it off."""
    card, samples = network(tmp_path / "model.onnx", convolve=False)
    samples["x"][-1, 0] = 20
    step = Quantize(calibration=calibration, percentile=99)
    with prepared(tmp_path / "model.onnx", tmp_path / "small.onnx", samples, step) as graph:
        graph.write(tmp_path / "small.onnx")
    scales = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "small.onnx").graph.initializer}
    whole = (20 - samples["x"].min()) / 255
    assert (float(scales["x_scale"]) > 0.99 * whole) == (calibration == "minmax")
    assert OnnxEngine(tmp_path, card.changed(files={"onnx": "small.onnx"})).forward(samples)["y"].shape == (
        50,
        8,
    )


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
@pytest.mark.parametrize("rows", [64, 50, 37])
def test_ranges_are_those_of_all_rows_at_once(tmp_path: Path, calibration: str, rows: int) -> None:
    """Within a bin, also where the first chunk has none of what is large, or is nought."""
    samples = {"x": two_layers(tmp_path / "model.onnx")["x"][RANDOM.integers(0, 24, rows)] * 1000}
    samples["x"][:32] = 0
    step = Quantize(calibration=calibration, percentile=99)  # type: ignore[arg-type]
    with prepared(tmp_path / "model.onnx", tmp_path / "small.onnx", samples, step) as graph:
        graph.write(tmp_path / "small.onnx")
        found = load_tensors_data(graph.ranges)
        options = {"num_bins": 512, "num_quantized_bins": 128} if calibration == "entropy" else {"percentile": 99}
        method = CalibrationMethod[calibration.capitalize()]
        whole = create_calibrator(graph.path, None, tmp_path / "augmented.onnx", method, extra_options=options)
        whole.collect_data(Whole(samples))
    wanted = whole.compute_data()
    assert {"x", "a", "b"} <= found.keys()
    for name in found.keys():  # noqa: SIM118 - it is no dict
        most = max(abs(float(end)) for end in whole.collector.histogram_dict[name][2:4])
        apart = 0 if calibration == "entropy" else 1.01 * most / 2048
        ends = zip(found[name].range_value, wanted[name].range_value, strict=True)
        assert all(abs(float(one) - float(other)) <= apart for one, other in ends)


def test_more_rows_of_calibration_take_no_more_memory(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", convolve=False)
    peaks = []
    for rows in (1024, 16384):
        samples = {"x": RANDOM.standard_normal((rows, 64)).astype(np.float32)}
        step = Quantize(calibration="percentile")
        with prepared(tmp_path / "model.onnx", tmp_path / "small.onnx", samples, step) as graph:
            tracemalloc.start()
            graph.write(tmp_path / "small.onnx")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)  # all that `x` came to is 4 MiB


def test_one_scale_for_all_channels_is_coarser(tmp_path: Path) -> None:
    rows = two_layers(tmp_path / "model.onnx")
    wanted = sensitive.answers(tmp_path / "model.onnx", rows)
    far = {}
    for per_channel in (True, False):
        quantised(tmp_path, rows, Quantize(method="weights-int8", per_channel=per_channel))
        far[per_channel] = sensitive.distance(wanted, sensitive.answers(tmp_path / "small.onnx", rows))
        (tmp_path / "small.onnx").unlink()
    assert 0 < far[True] <= far[False] < 1


def test_packed_weights_are_floats_again_once_loaded(tmp_path: Path) -> None:
    """What onnxruntime runs has no layer more than the float graph: it computes as that does."""
    card, samples = network(tmp_path / "model.onnx", convolve=True)
    with prepared(tmp_path / "model.onnx", tmp_path / "small.onnx", samples, Quantize(method="weights-int8")) as graph:
        assert list(graph.layers) == ["Conv_0"]  # the node had no name
        graph.write(tmp_path / "small.onnx")
    assert {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node} == {"Cast", "Mul", "Conv"}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tmp_path / "small.onnx", options, providers=["CPUExecutionProvider"])
    assert not {"Cast", "Mul"} & {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    wanted = OnnxEngine(tmp_path, card).forward(samples)["y"]
    given = OnnxEngine(tmp_path, card.changed(files={"onnx": "small.onnx"})).forward(samples)["y"]
    assert 0 < np.abs(given - wanted).max() < 0.02 * np.abs(wanted).max()


def recurrent(path: Path) -> None:
    """x FP32 [n, 3, 4] → an LSTM of 5 → y."""
    weights = {"w": (1, 20, 4), "r": (1, 20, 5)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=5, layout=0)],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 3, 5])],
        [numpy_helper.from_array(RANDOM.standard_normal(shape).astype("f"), name) for name, shape in weights.items()],
    )
    save(graph, path)


def double(path: Path) -> None:
    """x FP64 [n, 64] → a product → y."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", 8])],
        [numpy_helper.from_array(RANDOM.standard_normal((64, 8)), "w")],
    )
    save(graph, path)


@pytest.mark.parametrize("more", [{}, {"sensitive": 1}, {"sensitive": "auto"}])
@pytest.mark.parametrize(
    ("network", "method", "has"),
    [
        (recurrent, "weights-int8", "FLOAT of LSTM"),
        (double, "weights-int8", "DOUBLE of MatMul"),
        (double, "dynamic-int8", "DOUBLE of MatMul"),
    ],
)
def test_what_eight_bits_do_not_change_is_no_variant(
    tmp_path: Path, network: Callable[[Path], None], method: str, has: str, more: dict[str, object]
) -> None:
    network(tmp_path / "model.onnx")
    shape, kind = ((9, 3, 4), "f") if network is recurrent else ((9, 64), "d")
    with pytest.raises(Invalid, match=f"{method} changes no weight of this model, which has {has}; weights in float32 of Conv"):
        quantised(tmp_path, {"x": np.ones(shape, kind)}, Quantize(method=method, **more))  # type: ignore[arg-type]


def test_weights_of_other_layers_that_have_eight_bits_are_enough(tmp_path: Path) -> None:
    """onnxruntime's quantiser takes an LSTM."""
    recurrent(tmp_path / "model.onnx")
    QUANTISERS["dynamic-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", {})
    assert {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node} == {"DynamicQuantizeLSTM"}


def unnamed(path: Path, *, fed: bool = False) -> dict[str, np.ndarray]:
    """x → fc1 → x · sigmoid(x) → fc2 → y, of nodes without names; the weights are inputs too where they are `fed`."""
    weights = {f"fc{n}.weight": RANDOM.standard_normal((32, 32)).astype(np.float32) / 6 for n in (1, 2)}
    nodes = [
        helper.make_node("MatMul", ["x", "fc1.weight"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "fc2.weight"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in ("x", "y")]
    more = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [32, 32]) for name in weights] if fed else []
    kept = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    save(helper.make_graph(nodes, "swish", [ends[0], *more], ends[1:], kept), path)
    return {"x": RANDOM.standard_normal((64, 32)).astype(np.float32)}


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_layers_without_names_and_functions_between_them_are_quantised(tmp_path: Path, calibration: str, fed: bool) -> None:
    rows = unnamed(tmp_path / "model.onnx", fed=fed)
    step = Quantize(calibration=calibration, float_layers=("fc1",))  # type: ignore[arg-type]
    with prepared(tmp_path / "model.onnx", tmp_path / "small.onnx", rows, step) as graph:
        assert list(graph.layers) == ["fc1", "fc2"]
        graph.write(tmp_path / "small.onnx", leave=["fc1"])
    kinds = {i.name.partition("_")[0]: i.data_type for i in onnx.load(tmp_path / "small.onnx").graph.initializer if i.dims}
    assert (kinds["fc1.weight"], kinds["fc2.weight"]) == (TensorProto.FLOAT, TensorProto.INT8)
    wanted, given = (sensitive.answers(tmp_path / name, rows)[0] for name in ("model.onnx", "small.onnx"))
    assert 0 < np.abs(given - wanted).mean() < 0.1 * np.abs(wanted).mean()
