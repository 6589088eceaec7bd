"""The JSON of a program of torch.export, as far as it is read here (torch/_export/serde/schema.py, version 8). A union there is
an object with the one key that says which it is; a key of a union that is not named here is a kind that is not served.

Names are words, so that torch, which compiles them into source, finds nothing else in a file that is written from this.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modelyard.errors import Invalid

Name = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=500)]
Dotted = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z", max_length=1000)]
Entry = Annotated[str, Meta(pattern=r"^(weight|tensor)_[0-9]+\Z")]
Symbol = Annotated[str, Meta(pattern=r"^[a-z]{1,4}[0-9]+\Z", max_length=20)]
Float = float | Literal["Infinity", "-Infinity", "NaN"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What torch's schema has besides is not read."""


class Union(Part, frozen=True, forbid_unknown_fields=True):
    """Exactly one of its fields is set."""


class Device(Part, frozen=True):
    type: str
    index: int | None = None


class Named(Part, frozen=True):
    name: Name


class Complex(Part, frozen=True):
    real: Float
    imag: Float


class Hint(Union, frozen=True):
    as_int: int | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET


class Expression(Part, frozen=True):
    expr_str: str
    hint: Hint | None = None


class Number(Union, frozen=True):
    """A size: a number, an expression, or the value of a node."""

    as_int: int | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_name: Name | UnsetType = UNSET
    as_expr: Expression | UnsetType = UNSET


class OptionalTensor(Union, frozen=True):
    as_tensor: Named | UnsetType = UNSET
    as_none: bool | UnsetType = UNSET


class Argument(Union, frozen=True):
    as_none: bool | UnsetType = UNSET
    as_tensor: Named | UnsetType = UNSET
    as_tensors: list[Named] | UnsetType = UNSET
    as_optional_tensor: OptionalTensor | UnsetType = UNSET
    as_optional_tensors: list[OptionalTensor] | UnsetType = UNSET
    as_int: int | UnsetType = UNSET
    as_ints: list[int] | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_floats: list[Float] | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_bools: list[bool] | UnsetType = UNSET
    as_string: str | UnsetType = UNSET
    as_strings: list[str] | UnsetType = UNSET
    as_complex: Complex | UnsetType = UNSET
    as_sym_int: Number | UnsetType = UNSET
    as_sym_ints: list[Number] | UnsetType = UNSET
    as_sym_float: Number | UnsetType = UNSET
    as_sym_floats: list[Number] | UnsetType = UNSET
    as_sym_bool: Number | UnsetType = UNSET
    as_sym_bools: list[Number] | UnsetType = UNSET
    as_scalar_type: int | UnsetType = UNSET
    as_memory_format: int | UnsetType = UNSET
    as_layout: int | UnsetType = UNSET
    as_device: Device | UnsetType = UNSET


class NamedArgument(Part, frozen=True):
    name: Name
    arg: Argument
    kind: int | None = None


class Node(Part, frozen=True):
    target: str
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: dict[str, Any]
    name: Name | None = None


class TensorMeta(Part, frozen=True):
    dtype: int
    sizes: list[Number]
    requires_grad: bool
    device: Device
    strides: list[Number]
    storage_offset: Number
    layout: int


class Graph(Part, frozen=True):
    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[Name, TensorMeta]
    sym_int_values: dict[Name, Number]
    sym_bool_values: dict[Name, Number]
    sym_float_values: dict[Name, Number] = {}


class UserValue(Part, frozen=True):
    arg: Argument


class Kept(Part, frozen=True):
    """A parameter, a buffer or a constant, by its name in the module."""

    arg: Named
    parameter_name: Dotted | UnsetType = UNSET
    buffer_name: Dotted | UnsetType = UNSET
    tensor_constant_name: Dotted | UnsetType = UNSET
    persistent: bool | UnsetType = UNSET


class InputSpec(Union, frozen=True):
    user_input: UserValue | UnsetType = UNSET
    parameter: Kept | UnsetType = UNSET
    buffer: Kept | UnsetType = UNSET
    tensor_constant: Kept | UnsetType = UNSET


class OutputSpec(Part, frozen=True, forbid_unknown_fields=True):
    user_output: UserValue


class GraphSignature(Part, frozen=True):
    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class Tree(Part, frozen=True):
    """How tensors are packed: `type` None is a tensor."""

    type: str | None
    context: str | None
    children_spec: list[Tree]


class CallSignature(Part, frozen=True):
    inputs: list[Argument]
    outputs: list[Argument]
    in_spec: str
    out_spec: str
    forward_arg_names: list[Name] | None = None


class Call(Part, frozen=True):
    fqn: str
    signature: CallSignature | None = None


class GraphModule(Part, frozen=True):
    graph: Graph
    signature: GraphSignature
    module_call_graph: list[Call]


class Range(Part, frozen=True):
    min_val: int | None
    max_val: int | None


class Version(Part, frozen=True):
    major: int
    minor: int


class Said(Part, frozen=True):
    """`models/model.json`."""

    graph_module: GraphModule
    opset_version: dict[str, int]
    range_constraints: dict[Symbol, Range]
    schema_version: Version
    verifiers: list[str] = []
    torch_version: str = ""


class Called(Part, frozen=True):
    target: str


class CallsOfGraph(Part, frozen=True):
    nodes: list[Called]


class CallsOfModule(Part, frozen=True):
    graph: CallsOfGraph


class Calls(Part, frozen=True):
    """`models/model.json`, what it calls alone."""

    graph_module: CallsOfModule

    def targets(self) -> list[str]:
        return [node.target for node in self.graph_module.graph.nodes]


class Payload(Part, frozen=True):
    path_name: Entry
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class Config(Part, frozen=True):
    """Where the tensors of a kind lie, by their names in the module."""

    config: dict[Dotted, Payload]


def only(part: Union) -> tuple[str, Any]:
    """The field of a union that is set, and its value. Raises `Invalid` where it is not one."""
    found = [(name, value) for name in part.__struct_fields__ if (value := getattr(part, name)) is not UNSET]
    if len(found) != 1:
        raise Invalid(f"The program does not hold together: expected one of {', '.join(part.__struct_fields__)}.")
    return found[0]
