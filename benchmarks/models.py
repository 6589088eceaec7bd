"""The models the benchmarks serve and train, made from a seed; only MiniLM's weights are real.

Their inputs are named `x` and their outputs `y`; a text model's graph takes what its tokenizer makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

TINY = ("x", 10, 20, 1)
PICTURE = (3, 32, 32)


def tiny(path: Path) -> Path:
    """The model 10 → 20 → 1 with ReLU as an ONNX file at `path`."""
    name, inputs, hidden, outputs = TINY
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.normal(size=(inputs, hidden)),
        "b1": generator.normal(size=hidden),
        "w2": generator.normal(size=(hidden, outputs)),
        "b2": generator.normal(size=outputs),
    }
    nodes = [
        helper.make_node("Gemm", [name, "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"]),
    ]
    return _save(path, nodes, weights, (inputs,), (outputs,))


def cnn(path: Path) -> Path:
    """A small network for pictures of 3×32×32: three convolutions and ten numbers, about 3 million multiplications."""
    return _convolutional(path, PICTURE, (16, 32, 64), 10)


def slow(path: Path, seconds: float) -> tuple[Path, float]:
    """A stack of convolutions over 16×16 that takes one thread of this machine about `seconds` a row, and twice that for two
    rows: batches gain nothing. Returns the file and the seconds measured."""
    layers = 4
    while True:
        file = _stack(path, layers)
        session = session_of(file)
        row = {"x": np.zeros((1, 32, 16, 16), np.float32)}
        took = best_of(lambda: session.run(None, row))  # noqa: B023 - called before the next turn
        if took >= seconds or layers > 4096:
            return file, took
        layers = max(layers + 1, min(4 * layers, int(1.05 * layers * seconds / took)))


def large(path: Path, size: int) -> Path:
    """A model of `size` bytes that reads each weight once: what a cold start of it costs is loading it."""
    width = size // (4 * 256)
    weights = {"w": np.random.default_rng(0).normal(size=(256, width)), "v": np.full((width, 1), 1 / width)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    return _save(path, nodes, weights, (256,), (1,))


def mean(path: Path, width: int) -> Path:
    """The mean of `width` numbers: bodies as large as one likes, and next to nothing to compute."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)]
    return _save(path, nodes, {}, (width,), (1,))


def texts(number: int, tokenizer: Path, least: int = 5, most: int = 200) -> list[str]:
    """Distinct texts of `least` to `most` tokens (ends included), uniformly, of the tokenizer's own whole words."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(tokenizer))
    words = sorted(word for word in known.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    generator = np.random.default_rng(2)
    lengths = generator.integers(least, most + 1, number)
    # a whole word of the vocabulary is one token; two tokens are the ends
    return [" ".join(generator.choice(words, length - 2)) for length in lengths.tolist()]


def embeddings(file: Path, tokenizer: Path, samples: Sequence[str]) -> np.ndarray:
    """Each text alone through the graph, without padding: what every server should answer."""
    from tokenizers import Tokenizer

    known, session = Tokenizer.from_file(str(tokenizer)), session_of(file, 2)
    known.no_padding()
    known.enable_truncation(256)  # the model's own limit; the tokenizer's file says 128
    names, found = {one.name for one in session.get_inputs()}, []
    for text in samples:
        ids = np.array([known.encode(text).ids], np.int64)
        tokens = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        found.append(session.run(None, {name: tokens[name] for name in names})[0][0])
    return np.array(found)


def session_of(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def best_of(work: Callable[[], object], times: int = 5) -> float:
    """The shortest of some runs, in seconds, after one to warm up."""
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def _stack(path: Path, layers: int) -> Path:
    generator = np.random.default_rng(0)
    channels, nodes, weights, last = 32, [], {}, "x"
    for layer in range(layers):
        weights[f"w{layer}"] = generator.normal(size=(channels, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    return _save(path, nodes, weights, (channels, 16, 16), (channels,))


def _convolutional(path: Path, picture: Sequence[int], widths: Sequence[int], outputs: int) -> Path:
    generator = np.random.default_rng(0)
    nodes, weights, last, before = [], {}, "x", picture[0]
    for layer, width in enumerate(widths):
        weights[f"w{layer}"] = generator.normal(size=(width, before, 3, 3)) * (2 / (9 * before)) ** 0.5
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last, before = f"r{layer}", width
        if layer + 1 < len(widths):
            nodes.append(helper.make_node("MaxPool", [last], [f"m{layer}"], kernel_shape=[2, 2], strides=[2, 2]))
            last = f"m{layer}"
    weights["out"] = generator.normal(size=(before, outputs)) / before**0.5
    nodes += [helper.make_node("GlobalAveragePool", [last], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    nodes.append(helper.make_node("MatMul", ["f", "out"], ["y"]))
    return _save(path, nodes, weights, tuple(picture), (outputs,))


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *outputs])],
        [numpy_helper.from_array(array.astype(np.float32), key) for key, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
