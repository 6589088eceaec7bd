"""What a door is: one protocol's way in, in two halves. `envelope` runs in the gateway and never decodes a tensor; a `Codec`
runs in the replica, which scales out. A door holds no logic: access, routing and metering are the gateway's, one for all.

The contract suite over every door is `tests/contracts/test_doors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from modelyard.errors import ModelyardError
from modelyard.plugins import Registry
from modelyard.tensors import Array, Signature


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the gateway must know of a request before anyone decodes it. `verb` is the door's word for what is asked
    ('infer'); `version` None means whatever the deployment serves; `units` the most it may use, None where unknown."""

    door: str
    verb: str
    deployment: str
    version: str | None
    stream: bool = False
    units: int | None = None


@dataclass(slots=True)
class Question:
    """A decoded request: arrays by input name, the outputs asked for in their order, and whatever the door needs to encode
    the answer (`wire`), which nobody else reads."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    wire: Any


class Codec(Protocol):
    """The replica's half, made for one model version: its signature, and its reference, which its answers name."""

    def decode(self, head: Mapping[str, str], body: bytes) -> Question:
        """Raises `Invalid` saying which tensor is wrong, what was given and what is expected; so may looking at the inputs,
        where numbers are made arrays only then."""
        ...

    def encode(
        self, question: Question, deployment: str, version: str, outputs: Mapping[str, Array]
    ) -> tuple[dict[str, str] | None, bytes]:
        """Headers (None: plain JSON) and body of the answer."""
        ...


class Door(Protocol):
    """The gateway's half. `headers` are the request headers (lower case) that `decode` needs to see."""

    @property
    def name(self) -> str: ...
    @property
    def headers(self) -> frozenset[str]: ...

    def envelope(self, method: bytes, path: bytes) -> Envelope | None:
        """What a request asks for, from its line alone; None where this door does not answer such a path."""
        ...

    def error(self, error: ModelyardError) -> bytes:
        """The body of an error answer, JSON."""
        ...

    def codec(self, signature: Signature, model: str = "") -> Codec: ...


def error_body(error: ModelyardError) -> bytes:
    """An error in the manner of KServe's protocols."""
    return msgspec.json.encode({"error": error.message})


def segment(raw: bytes) -> str:
    """What a segment of a path says."""
    return unquote_to_bytes(raw).decode("utf-8", "replace")


DOORS: Registry[Door] = Registry(
    "door",
    {"grpc": "modelyard.serving.grpc.door:GRPC", "oip": "modelyard.serving.oip:OIP", "v1": "modelyard.serving.v1:V1"},
)
