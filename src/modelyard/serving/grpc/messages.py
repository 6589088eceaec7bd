"""The messages of a call by gRPC, made from a table, in a pool of their own: no generated file that ties us to one version of
protobuf, no clash with a client that registers the same names in this process.

A map is written as what it is on the wire: repeated pairs of key and value. Source: grpc_service.proto of
github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto  # type: ignore[import-untyped]
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

# Fields in the order of their numbers, from 1; '*' is repeated. Those of a message in ONEOF exclude each other.
_MESSAGES = {
    "InferParameter": "bool_param:bool int64_param:int64 string_param:string double_param:double uint64_param:uint64",
    "Parameter": "key:string value:InferParameter",
    "InferTensorContents": (
        "bool_contents:*bool int_contents:*int32 int64_contents:*int64 uint_contents:*uint32 uint64_contents:*uint64 "
        "fp32_contents:*float fp64_contents:*double bytes_contents:*bytes"
    ),
    "InferInputTensor": "name:string datatype:string shape:*int64 parameters:*Parameter contents:InferTensorContents",
    "InferRequestedOutputTensor": "name:string parameters:*Parameter",
    "InferOutputTensor": "name:string datatype:string shape:*int64 parameters:*Parameter contents:InferTensorContents",
    "ModelInferRequest": (
        "model_name:string model_version:string id:string parameters:*Parameter inputs:*InferInputTensor "
        "outputs:*InferRequestedOutputTensor raw_input_contents:*bytes"
    ),
    "ModelInferResponse": (
        "model_name:string model_version:string id:string parameters:*Parameter outputs:*InferOutputTensor "
        "raw_output_contents:*bytes"
    ),
}
_ONEOF = "InferParameter"
_PACKAGE = "modelyard.inference"


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="modelyard/inference.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name == _ONEOF:
            message.oneof_decl.add(name="choice")
        for number, text in enumerate(fields.split(), 1):
            label, kind = text.partition(":")[::2]
            field = message.field.add(name=label, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if kind.startswith("*"):
                kind, field.label = kind[1:], FieldDescriptorProto.LABEL_REPEATED
            if kind in _MESSAGES:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
            if name == _ONEOF:
                field.oneof_index = 0
    pool = DescriptorPool()
    pool.Add(file)
    return pool


POOL = _pool()
ModelInferRequest: Any = GetMessageClass(POOL.FindMessageTypeByName(f"{_PACKAGE}.ModelInferRequest"))
ModelInferResponse: Any = GetMessageClass(POOL.FindMessageTypeByName(f"{_PACKAGE}.ModelInferResponse"))
