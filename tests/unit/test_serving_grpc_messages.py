"""Our table of messages is the protocol's: field by field as in the file that the clients' code was made from."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from modelyard.serving.grpc.messages import _MESSAGES, POOL

theirs = service_pb2.ModelInferRequest.DESCRIPTOR.file.pool


def found(name):
    nested = {"InferInputTensor": "ModelInferRequest.", "InferRequestedOutputTensor": "ModelInferRequest."}
    nested["InferOutputTensor"] = "ModelInferResponse."
    if name == "Parameter":
        return theirs.FindMessageTypeByName("inference.ModelInferRequest.ParametersEntry")
    return theirs.FindMessageTypeByName(f"inference.{nested.get(name, '')}{name}")


@pytest.mark.parametrize("name", _MESSAGES)
def test_fields_are_those_of_the_protocol(name):
    ours = POOL.FindMessageTypeByName(f"modelyard.inference.{name}")
    assert told(ours) == told(found(name))


def told(message):
    return [
        (field.name, field.number, field.type, field.is_repeated, field.is_packed, bool(field.containing_oneof))
        for field in message.fields
    ]
