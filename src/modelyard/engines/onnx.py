"""Runs a model version's ONNX graph with onnxruntime. Made by replicas, by verification and by measurement, so that what is
measured is what serves. It knows no batching, no transform and no protocol.

A graph may name files of its own ("external data"); before onnxruntime sees it, `check` proves that every one is a plain
file inside the artefact. Most name none, which their bytes tell without reading them as a graph, and without the library onnx:
a replica starts sooner then. Libraries of custom operators are never registered.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.tensors import agree, text_of
from modelyard.errors import Invalid, Unsafe
from modelyard.tensors import Array, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx

Device = Literal["cpu", "cuda"]

# `modelyard.QUIET` keeps it silent from its import on; this is for whoever imported onnxruntime before us.
ort.disable_telemetry_events()

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ERRORS_ONLY = 3
# Optimisations that make a graph slower on a CPU: the fused kernel has no vector instructions, where sum and normalisation
# apart have. MiniLM takes 0.88 times as long without (decision 19).
_SLOWER = ["SkipLayerNormFusion"]
# onnxruntime's errors share no base class.
ERRORS = (
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
)


class OnnxEngine:
    """A `BatchEngine` over `card.files['onnx']`. Raises `Unsafe` where the graph names files outside `folder`, `Invalid` where
    onnxruntime refuses it or where its tensors are not those of the card."""

    def __init__(self, folder: Path, card: ModelCard, *, threads: int = 1, device: Device = "cpu") -> None:
        if "onnx" not in card.files:
            raise Invalid("model.json names no file for the engine 'onnx': expected files.onnx.")
        path = inside(folder, card.files["onnx"])
        if _may_name_files(path):
            check(path)
        self._session = _session(path, threads, device)
        self._signature = card.signature
        agree(card.signature, session_signature(self._session))
        self._outputs = [spec.name for spec in card.outputs]
        self._text_in = [spec.name for spec in card.inputs if spec.datatype == "BYTES"]
        self._text_out = [spec.name for spec in card.outputs if spec.datatype == "BYTES"]

    @property
    def signature(self) -> Signature:
        return self._signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self._text_in:
            batch = {**batch, **{name: _decoded(name, batch[name]) for name in self._text_in}}
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, batch), strict=True))
        for name in self._text_out:
            outputs[name] = _encoded(outputs[name])
        return outputs

    def close(self) -> None:
        del self._session


def signature_of(path: Path) -> tuple[Signature, tuple[str, ...]]:
    """The tensors a graph takes and gives (-1 where a dim is open), and the names of outputs that are no tensors, left out."""
    check(path)
    session = _session(path, 1, "cpu")
    try:
        skipped = tuple(o.name for o in session.get_outputs() if o.type not in _DATATYPES)
        return session_signature(session), skipped
    except UnicodeDecodeError as error:  # protobuf and onnxruntime let any bytes be a name
        raise Invalid(f"'{path.name}' has a name of an input, an output or a dim that is not text: {error}.") from error


def session_signature(session: Any) -> Signature:
    """Raises `Invalid` naming an input that is no tensor of the protocol's datatypes."""
    for given in session.get_inputs():
        if given.type not in _DATATYPES:
            raise Invalid(
                f"Input '{given.name}' is a {given.type}; expected a tensor of {', '.join(sorted(_DATATYPES.values()))}."
            )
    outputs = tuple(_spec(o) for o in session.get_outputs() if o.type in _DATATYPES)
    if not outputs:
        raise Invalid("No output of the graph is a tensor; export it with tensor outputs (for scikit-learn: zipmap=False).")
    return Signature(tuple(_spec(i) for i in session.get_inputs()), outputs)


def check(path: Path) -> onnx.ModelProto:
    """The parsed graph, without its external data, once every file it names is known to be a plain one inside its folder.
    Raises `Invalid` where it is no ONNX, `Unsafe` where external data is absolute, outside, linked or past a file's end."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise Invalid(f"'{path.name}' is not an ONNX model: {error}.") from error
    if not model.graph.node and not model.graph.output:
        raise Invalid(f"'{path.name}' holds no ONNX graph.")
    for tensor in _tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            _check_external(path.parent, tensor)
    return model


def _may_name_files(path: Path) -> bool:
    """False where the graph certainly has no external data: a tensor's file stands under the key 'location' (onnx.proto), and
    onnxruntime refuses external data without one."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"location") >= 0


def external_files(model: onnx.ModelProto) -> set[str]:
    """The files beside it that a graph keeps tensors in, as it names them."""
    tensors = (tensor for tensor in _tensors(model) if tensor.data_location == tensor.EXTERNAL)
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def _check_external(folder: Path, tensor: onnx.TensorProto) -> None:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    path = inside(folder, facts.get("location", ""))
    stat = path.stat()
    if stat.st_nlink != 1:
        raise Unsafe(f"'{path.name}', external data of tensor '{tensor.name}', is a hard link; expected a file of its own.")
    try:
        offset, length = int(facts.get("offset", "0")), int(facts.get("length", "0"))
    except ValueError as error:
        raise Unsafe(f"External data of tensor '{tensor.name}' has an offset or length that is no number.") from error
    if offset < 0 or length < 0 or offset + length > stat.st_size:
        raise Unsafe(f"External data of tensor '{tensor.name}' lies past the end of '{path.name}'.")


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever it hides: initialisers, attributes, sub-graphs, functions, sparse tensors."""
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                yield from _tensors(part)


def _session(path: Path, threads: int, device: Device) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever its name ends in
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    cuda = device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers()
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    try:
        return ort.InferenceSession(path, options, providers=providers, disabled_optimizers=[] if cuda else _SLOWER)
    except ERRORS as error:
        raise Invalid(f"onnxruntime refuses '{path.name}': {_first_line(error, path)}") from error


def _first_line(error: Exception, path: Path) -> str:
    """onnxruntime's reason without the machine's paths."""
    return str(error).replace(str(path), path.name).replace(str(path.parent), "").partition("\n")[0][:500]


def _spec(given: Any) -> TensorSpec:
    return TensorSpec(
        given.name, _DATATYPES[given.type], tuple(d if isinstance(d, int) and d >= 0 else -1 for d in given.shape)
    )


def _decoded(name: str, array: Array) -> Array:
    """Raises `Invalid` naming the first row that is not UTF-8."""
    each = array.size // max(1, len(array))
    texts = [text_of(name, at // each, value) for at, value in enumerate(array.ravel())]
    return np.array(texts, dtype=object).reshape(array.shape)


def _encoded(array: Array) -> Array:
    return np.array([str(v).encode() for v in array.ravel()], dtype=object).reshape(array.shape)
