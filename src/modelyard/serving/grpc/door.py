"""The Open Inference Protocol over gRPC, as a door: what `server` asks the gateway for, and the codec in the replica.

A gRPC call names its deployment in its message, so `server` reads it there and asks by a target of its own making. No HTTP
request can have that target: a byte 0 is not allowed in any. Nothing here needs gRPC or protobuf.
"""

from __future__ import annotations

import re
from typing import cast
from urllib.parse import quote

from modelyard.errors import Invalid, ModelyardError
from modelyard.plugins import load
from modelyard.serving.doors import Codec, Envelope, error_body, segment
from modelyard.tensors import Signature

_PATH = re.compile(rb"/\x00grpc/([^/]+)(?:/([^/]+))?")


def target(deployment: str, version: str) -> bytes:
    """What the gateway is asked for. Raises `Invalid` without a name."""
    if not deployment:
        raise Invalid("The request has no model_name; expected a deployment's name.")
    return f"/\x00grpc/{quote(deployment, safe='')}{version and '/'}{quote(version, safe='')}".encode()


class GrpcDoor:
    """The gateway's half."""

    name = "grpc"
    headers: frozenset[str] = frozenset()

    def envelope(self, method: bytes, path: bytes) -> Envelope | None:
        """Of a `target`; None for anything else."""
        match = _PATH.fullmatch(path) if method == b"POST" else None
        if match is None:
            return None
        deployment, version = match.groups()
        return Envelope("grpc", "infer", segment(deployment), None if version is None else segment(version))

    def error(self, error: ModelyardError) -> bytes:
        return error_body(error)

    def codec(self, signature: Signature, model: str = "") -> Codec:
        return cast(Codec, load("modelyard.serving.grpc.codec:GrpcCodec")(signature, model))


GRPC = GrpcDoor()
