"""A program of torch.export small enough to be written by hand, entry by entry: y = x @ w. Whatever a test plants in it, it is
what torch.export.save would have written."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)
BATCH = "Symbol('s77', positive=True, integer=True)"
LEAF = {"type": None, "context": None, "children_spec": []}


def container(kind: str, *children: Any, context: str = "null") -> dict[str, Any]:
    return {"type": f"builtins.{kind}", "context": context, "children_spec": list(children)}


def size(value: int | str) -> dict[str, Any]:
    return {"as_int": value} if isinstance(value, int) else {"as_expr": {"expr_str": value, "hint": {"as_int": 3}}}


def meta(*sizes: int | str) -> dict[str, Any]:
    """Of a tensor of float32 in rows."""
    strides = [int(np.prod([1, *sizes[axis + 1 :]])) for axis in range(len(sizes))]
    return {
        "dtype": 7,
        "sizes": [size(each) for each in sizes],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [size(each) for each in strides],
        "storage_offset": size(0),
        "layout": 7,
    }


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def node(target: str, output: str, **arguments: Any) -> dict[str, Any]:
    inputs = [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments.items()]
    return {"target": target, "inputs": inputs, "outputs": [tensor(output)], "metadata": {}, "name": output}


def entries() -> dict[str, Any]:
    """Places under the archive's root → JSON or bytes."""
    call = container("tuple", container("tuple", LEAF), container("dict", context="[]"))
    graph = {
        "inputs": [tensor("p_w"), tensor("x")],
        "outputs": [tensor("y")],
        "nodes": [node("torch.ops.aten.matmul.default", "y", self=tensor("x"), other=tensor("p_w"))],
        "tensor_values": {"p_w": meta(3, 2), "x": meta(BATCH, 3), "y": meta(BATCH, 2)},
        "sym_int_values": {},
        "sym_bool_values": {},
        "is_single_tensor_return": False,
        "custom_obj_values": {},
        "sym_float_values": {},
    }
    signature = {
        "input_specs": [
            {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
            {"user_input": {"arg": tensor("x")}},
        ],
        "output_specs": [{"user_output": {"arg": tensor("y")}}],
    }
    called = {"inputs": [], "outputs": [], "in_spec": json.dumps([1, call]), "out_spec": json.dumps([1, LEAF])}
    module = {
        "graph": graph,
        "signature": signature,
        "module_call_graph": [{"fqn": "", "signature": called | {"forward_arg_names": ["x"]}}],
        "metadata": {},
        "treespec_namedtuple_fields": {},
    }
    program = {
        "graph_module": module,
        "opset_version": {"aten": 10},
        "range_constraints": {"s77": {"min_val": 2, "max_val": None}},
        "schema_version": {"major": 8, "minor": 20},
        "verifiers": ["TRAINING"],
        "torch_version": "2.13.0",
        "guards_code": [],
    }
    weight = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta(3, 2)}
    return {
        "models/model.json": program,
        "data/weights/model_weights_config.json": {"config": {"w": weight}},
        "data/weights/weight_0": MATRIX.tobytes(),
        "data/constants/model_constants_config.json": {"config": {}},
        "data/sample_inputs/model.pt": b"",
        "archive_format": b"pt2",
        "archive_version": b"0",
        ".data/version": b"6\n",
        "byteorder": b"little",
    }


def write(path: Path, content: dict[str, Any], root: str = "model/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for place, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"{root}{place}"), data if isinstance(data, bytes) else json.dumps(data))
    return path
