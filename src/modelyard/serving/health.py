"""What a replica tells of itself, as values within bounds: it runs users' code, and may tell anything.

`probe` reads every answer to HEALTH here. What comes out fits the database, and what was promised of `Health.metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from modelyard.errors import Internal, ModelyardError, from_wire
from modelyard.serving.frames import Fault, HealthFrame
from modelyard.serving.types import Health, ReplicaState

_Text = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[^\x00]*$")]  # PostgreSQL keeps no zero byte
_Shape = Annotated[list[Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]], msgspec.Meta(max_length=64)]
_MESSAGE = 2000  # characters of an error
_MEMORY = 1 << 50
_COUNT = (1 << 63) - 1


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: _Text
    datatype: _Text
    shape: _Shape


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    us_a_row: Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    platform: _Text = ""
    task: _Text = ""
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []
    batch: _Batch | msgspec.UnsetType = msgspec.UNSET


def read(frame: HealthFrame, memory: int | None) -> Health:
    """What is told. `memory` are the bytes that the replica takes where that was measured; else its own word is taken. One that
    tells what cannot be is a replica with an error."""
    state = ReplicaState(frame.state) if frame.state in ("ready", "draining") else ReplicaState.starting
    try:
        metadata = _metadata(frame.metadata)
    except msgspec.ValidationError as error:
        return odd(f"its metadata are none: {error}")
    if memory is None:
        told = frame.stats.get("memory", 0)
        memory = min(max(told, 0), _MEMORY) if isinstance(told, int) else 0
    done, refused = (_count(frame.stats.get(name)) for name in ("units", "refused"))
    peers = told if isinstance(told := frame.stats.get("peers"), int) and told >= 0 else None
    return Health(state, metadata, _error(frame.error), frame.queue_depth, frame.steps, memory, done, refused, peers)


def _count(told: object) -> int:
    return min(max(told, 0), _COUNT) if isinstance(told, int) else 0


def odd(why: str) -> Health:
    """A replica that told what no replica tells."""
    return Health(ReplicaState.starting, {}, Internal(f"The replica told of itself what no replica tells: {why[:_MESSAGE]}"))


def _metadata(told: Mapping[str, Any]) -> Mapping[str, Any]:
    if not told:
        return {}
    found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(told, _Metadata))
    return found


def _error(fault: Fault | None) -> ModelyardError | None:
    return None if fault is None else from_wire(fault.code, fault.message[:_MESSAGE].replace("\0", ""))
