"""How a sample is asked of each kind of server, and how its answer is read: one function a protocol, the densest form that a
server takes.

A sample is a row of numbers, a picture of 3×32×32 or a text; an answer is read as a flat array, to be compared with
onnxruntime's. Bodies are made before the load, so that none of this is measured.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Headers = Mapping[str, str]
_JSON = {"content-type": "application/json"}
_BYTES = {"content-type": "application/octet-stream"}
_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Protocol:
    """`headers` go with every body: of the binary extension too, since all samples of a model make headers of one length."""

    path: str
    headers: Headers
    body: Callable[[Any], bytes]
    read: Callable[[Headers, bytes], np.ndarray]


def plain(kind: str) -> Protocol:
    """{"input": …} → {"output": […]}: what one writes by hand."""
    return Protocol("/predict", _JSON, lambda sample: _dumps({"input": _listed(sample)}), _output)


def inference(kind: str) -> Protocol:
    """As `plain`, or a picture's bytes there and back, where mosec has its route."""
    return Protocol("/inference", *((_BYTES, _packed, _floats) if kind == "picture" else _parts(plain(kind))))


def raw(kind: str) -> Protocol:
    """As `plain`, or a picture's bytes there and back."""
    return Protocol("/predict", _BYTES, _packed, _floats) if kind == "picture" else plain(kind)


def wrapped(kind: str) -> Protocol:
    """As `plain`, pictures as base64: the densest that JSON takes."""
    wrap: Callable[[Any], bytes] = lambda sample: _dumps({"input": base64.b64encode(_packed(sample)).decode()})  # noqa: E731
    return Protocol("/predict", _JSON, wrap, _output) if kind == "picture" else plain(kind)


def bento(kind: str) -> Protocol:
    """{"inputs": [one]} → [[…]]; pictures as base64."""

    def body(sample: Any) -> bytes:
        return _dumps({"inputs": [base64.b64encode(_packed(sample)).decode() if kind == "picture" else _listed(sample)]})

    return Protocol("/predict", _JSON, body, lambda _, answer: np.ravel(json.loads(answer)))


def oip(kind: str, model: str = "m", *, binary: bool = False, name: str = "input", batched_text: bool = False) -> Protocol:
    """The Open Inference Protocol; `binary`: pictures by its binary extension. `batched_text`: texts are [n, 1], not [n]."""
    path = f"/v2/models/{model}/infer"
    if kind == "text":
        shape = [1, 1] if batched_text else [1]
        return Protocol(path, _JSON, lambda sample: _oip(name, shape, "BYTES", [sample]), _oip_read)
    if kind == "picture" and binary:
        size = 4 * 3 * 32 * 32
        header = _dumps(
            {
                "inputs": [_tensor(name, [1, 3, 32, 32], "FP32") | {"parameters": {"binary_data_size": size}}],
                "parameters": {"binary_data_output": True},
            }
        )
        headers = {**_BYTES, _LENGTH: str(len(header))}
        return Protocol(path, headers, lambda sample: header + _packed(sample), _oip_read)
    return Protocol(
        path, _JSON, lambda sample: _oip(name, [1, *np.shape(sample)], "FP32", np.ravel(sample).tolist()), _oip_read
    )


def _parts(protocol: Protocol) -> tuple[Headers, Callable[[Any], bytes], Callable[[Headers, bytes], np.ndarray]]:
    return protocol.headers, protocol.body, protocol.read


def _tensor(name: str, shape: list[int], datatype: str) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype}


def _oip(name: str, shape: list[int], datatype: str, data: list[Any]) -> bytes:
    return _dumps({"inputs": [{**_tensor(name, shape, datatype), "data": data}]})


def _oip_read(headers: Headers, answer: bytes) -> np.ndarray:
    length = int(headers.get(_LENGTH, len(answer)))
    (output,) = json.loads(answer[:length])["outputs"]
    if "data" in output:
        return np.ravel(output["data"])
    return np.frombuffer(answer[length:], np.float32)


def _output(_: Headers, answer: bytes) -> np.ndarray:
    return np.ravel(json.loads(answer)["output"])


def _floats(_: Headers, answer: bytes) -> np.ndarray:
    return np.frombuffer(answer, np.float32)


def _packed(sample: Any) -> bytes:
    return np.asarray(sample, np.float32).tobytes()


def _listed(sample: Any) -> Any:
    return sample if isinstance(sample, str) else np.asarray(sample).tolist()


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def asked(deployment: str, shape: tuple[int, ...], number: int, *, seed: int = 1) -> tuple[Protocol, np.ndarray]:
    """How the platform is asked of a deployment of `models`, and `number` distinct samples: JSON for vectors, bytes else."""
    samples = np.random.default_rng(seed).normal(size=(number, *shape)).astype(np.float32)
    if len(shape) == 1 and shape[0] <= 256:
        return oip("vector", deployment, name="x"), samples
    return rows_as_bytes(deployment, shape), samples


def rows_as_bytes(deployment: str, shape: tuple[int, ...]) -> Protocol:
    """The binary extension for a row of any shape; the answer comes as JSON."""
    size = int(4 * np.prod(shape))
    header = _dumps({"inputs": [_tensor("x", [1, *shape], "FP32") | {"parameters": {"binary_data_size": size}}]})
    headers = {**_BYTES, _LENGTH: str(len(header))}
    return Protocol(f"/v2/models/{deployment}/infer", headers, lambda sample: header + _packed(sample), _oip_read)
