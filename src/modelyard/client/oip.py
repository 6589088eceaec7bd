"""The Open Inference Protocol's body as a client writes and reads it: a JSON header, then the tensors as raw bytes.

Loaded on the first prediction, as numpy is: a client that only manages needs neither.
Source: KServe, Open Inference Protocol v2, binary tensor data extension.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.client.answer import Answer
from modelyard.errors import Internal, Invalid
from modelyard.tensors import DATATYPES, Array, datatype_of

HEADER_LENGTH = "Inference-Header-Content-Length"


def request(asked: Mapping[str, Any], signature: Callable[[], Mapping[str, str]]) -> tuple[dict[str, str], bytes]:
    """Headers and body of an infer request on 'inputs', 'image' or 'text', one of which is not None; `signature` tells the
    model's datatypes where they are needed: a list says no datatype, an array does."""
    what = [name for name, value in asked.items() if value is not None]
    if len(what) != 1:
        raise Invalid("Say what to predict on: one of inputs={'name': values}, image=… and text=….")
    value = asked[what[0]]
    given = dict(value) if what == ["inputs"] else {what[0]: (image_tensor if what == ["image"] else text_tensor)(value)}
    return encode(given, signature() if needs_signature(given) else {})


def image_tensor(images: Any) -> Array:
    """One image or a list of them as BYTES [n]: paths, encoded bytes, or what can `save(file, format)` as Pillow's can."""
    several = images if isinstance(images, list | tuple) else [images]
    return _objects([_encoded(image) for image in several], (len(several),))


def text_tensor(texts: Any) -> Array:
    """One text or a list of them as BYTES [n]."""
    several = [texts] if isinstance(texts, str | bytes) else list(texts)
    return _objects([_bytes("text", text) for text in several], (len(several),))


def needs_signature(inputs: Mapping[str, Any]) -> bool:
    """Whether the model's own datatypes are needed: a list says no datatype, an array does."""
    return any(not isinstance(value, np.ndarray) for value in inputs.values())


def tensor(name: str, value: Any, datatype: str | None) -> Array:
    """A value as an array the protocol knows. Lists take the model's `datatype`; arrays keep their own."""
    if isinstance(value, np.ndarray):
        array = value if value.dtype.kind not in "US" else value.astype(object)
    elif datatype == "BYTES" or (datatype is None and _is_text(value)):
        array = np.array(value, dtype=object)
    else:
        try:
            array = np.asarray(value, dtype=DATATYPES.get(datatype or ""))
        except (TypeError, ValueError) as error:
            raise Invalid(f"Input '{name}' cannot be made a {datatype or 'tensor'}: {error}.") from error
    if array.dtype.newbyteorder("=") not in DATATYPES.values():
        raise Invalid(f"Input '{name}' has type {array.dtype}; known are {', '.join(DATATYPES)}.")
    return np.atleast_1d(array)


def encode(inputs: Mapping[str, Any], datatypes: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
    """Headers and body of an infer request; `datatypes` are the model's, by input name."""
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, value in inputs.items():
        array = tensor(name, value, datatypes.get(name))
        data = pack(name, array)
        parameters = {"binary_data_size": len(data)}
        described.append({"name": name, "shape": list(array.shape), "datatype": datatype_of(array), "parameters": parameters})
        parts.append(data)
    header = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    body = b"".join([header, *parts])
    headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
    return headers, body


def decode(headers: Mapping[str, str], body: bytes) -> Answer:
    """The answer in an infer response, its headers by their names in small letters. Raises `Internal` for a body that is not
    the protocol's."""
    try:
        length = int(headers.get(HEADER_LENGTH.lower()) or len(body))
        header = json.loads(body[:length])
        outputs: dict[str, Array] = {}
        for output in header["outputs"]:
            size = (output.get("parameters") or {}).get("binary_data_size")
            if size is None:
                outputs[output["name"]] = _from_json(output)
            else:
                outputs[output["name"]] = unpack(body[length : length + size], output["datatype"], output["shape"])
                length += size
        request = header.get("id") or headers.get("x-request-id") or ""
        model = (header.get("parameters") or {}).get("model", "")
        trace = headers.get("traceparent", "")[3:35]
        return Answer(outputs, header["model_name"], str(header.get("model_version", "")), request, str(model), trace)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise Internal(f"The answer is not the Open Inference Protocol's: {error!r}.") from error


def pack(name: str, array: Array) -> bytes:
    """Row-major little-endian bytes; each element of a BYTES tensor behind its length as u32."""
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
    elements = [_bytes(name, element) for element in array.ravel()]
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def unpack(data: bytes, datatype: str, shape: Iterable[int]) -> Array:
    """The reverse of `pack`; BF16, which numpy lacks, comes back as float32."""
    if datatype == "BYTES":
        elements, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            elements.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        return _objects(elements, shape)
    if datatype == "BF16":
        words = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return words.view(np.float32).reshape(tuple(shape))
    return np.frombuffer(data, DATATYPES[datatype].newbyteorder("<")).reshape(tuple(shape))


def _from_json(output: Mapping[str, Any]) -> Array:
    shape = tuple(output["shape"])
    if output["datatype"] == "BYTES":
        return _objects([_bytes(output["name"], element) for element in np.array(output["data"], object).ravel()], shape)
    return np.asarray(output["data"], DATATYPES[output["datatype"]]).reshape(shape)


def _objects(elements: list[bytes], shape: Iterable[int]) -> Array:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(tuple(shape))


def _bytes(name: str, element: Any) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes | bytearray | memoryview):
        return bytes(element)
    raise Invalid(f"Input '{name}' is BYTES, so its elements are text or bytes, not {type(element).__name__}.")


def _is_text(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str | bytes)


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise Invalid(f"The image '{image}' cannot be read: {error.strerror}.") from error
    if hasattr(image, "save"):
        return _saved(image)
    raise Invalid(f"An image is a path, the bytes of a PNG or JPEG, or a Pillow image, not {type(image).__name__}.")


def _saved(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
