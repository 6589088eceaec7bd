"""The fixed set of frames between a gateway and a replica, and their bytes.

A frame is its length (u32, little-endian) and a msgpack array whose first element is the frame's number; at most 64 KiB in
all. `channel` moves them; `router` and `replica` say and understand them. Nothing here does input or output.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any

import msgspec

from modelyard.errors import Invalid

MAX_FRAME = 1 << 16
# Headers of an answer; None where it is plain JSON.
Head = dict[str, str] | None
# A piece of a body in one frame; what is left of the 64 KiB is for names and headers.
PIECE = 56 << 10
_LENGTH = struct.Struct("<I")
_NO_LENGTH = bytes(_LENGTH.size)


# What a call may be said to have used, and a replica to hold or to have done; what says more is no frame. Sums of it over all
# calls there will ever be fit the ledger's 64 bits.
Used = Annotated[int, msgspec.Meta(ge=0, le=1 << 36)]
Held = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Done = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Fault(msgspec.Struct, array_like=True, gc=False):
    """An error as it travels: `code` names the class of `errors`."""

    code: str
    message: str


class Usage(msgspec.Struct, array_like=True, gc=False):
    """What a call used: `units` of its task (rows, tokens, seconds) and microseconds of processor time."""

    units: Used = 0
    cpu_us: Used = 0


class CallFrame(msgspec.Struct, array_like=True, tag=1, gc=False):
    """A new call, gateway to replica. `id` is unique on its connection; `deadline` a time.time(); `grant` the units it may
    use (None: no limit); `head` the few headers the door's decoder needs; with `more` the body goes on in BODY frames."""

    id: int
    project: str
    deployment: str
    version: str
    door: str
    verb: str
    deadline: float
    grant: int | None
    head: dict[str, str]
    data: bytes = b""
    more: bool = False


class BodyFrame(msgspec.Struct, array_like=True, tag=2, gc=False):
    """The next piece of a call's body."""

    id: int
    data: bytes
    more: bool = False


class PartFrame(msgspec.Struct, array_like=True, tag=3, gc=False):
    """A piece of an answer, replica to gateway, where it does not fit the END. `seq` counts parts; a part larger than a frame
    comes as several with the same `seq`, all but the last with `more`. `units` were used by this part. `head`: headers of the
    answer, on the first only."""

    id: int
    seq: int
    units: int
    data: bytes
    head: Head = None
    more: bool = False


class MoreFrame(msgspec.Struct, array_like=True, tag=4, gc=False):
    """A replica asks for `units` beyond a call's grant."""

    id: int
    units: Used


class GrantFrame(msgspec.Struct, array_like=True, tag=5, gc=False):
    """A gateway gives `units` more."""

    id: int
    units: int


class EndFrame(msgspec.Struct, array_like=True, tag=6, gc=False):
    """The last frame of a call. `queue_depth`: calls the replica holds now, from all gateways. An answer of one small piece
    comes with it: `data`, and `head` its headers; then there is no PART. `times`, of a sampled call: the seconds from its CALL
    until it was decoded, its batch began, was computed, and its answer was encoded."""

    id: int
    usage: Usage
    queue_depth: Held
    error: Fault | None = None
    data: bytes | None = None
    head: Head = None
    times: tuple[float, float, float, float] | None = None


class CancelFrame(msgspec.Struct, array_like=True, tag=7, gc=False):
    """Nobody waits for this call any more. It still ends with an END that says what it used."""

    id: int


# Whether other replicas share the machine of the one that is asked how it is.
ALONE, SHARED = "alone", "shared"


class HealthFrame(msgspec.Struct, array_like=True, tag=8, gc=False):
    """Asked with a `seq` and, by gateways, as `state` whether the replica is 'alone' on its machine or it is 'shared'; answered
    with the same `seq`. `state` then is loading, ready, failed or draining; `metadata` the
    public tensors, and of the best batch where that was measured; `steps` counts batches computed, so that a busy replica can
    be told from a hung one; `stats` are the counters of `stats.Stats`."""

    seq: int
    state: str = ""
    metadata: dict[str, Any] = {}
    error: Fault | None = None
    queue_depth: Held = 0
    steps: Done = 0
    stats: dict[str, Any] = {}


class SubcallFrame(msgspec.Struct, array_like=True, tag=9, gc=False):
    """A call made by a call (a pipeline's step), replica to gateway, under the parent call's `id`, project and grant."""

    id: int
    child: int
    deployment: str
    version: str | None
    door: str
    verb: str
    head: dict[str, str]
    data: bytes = b""
    more: bool = False


Frame = CallFrame | BodyFrame | PartFrame | MoreFrame | GrantFrame | EndFrame | CancelFrame | HealthFrame | SubcallFrame

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def append(buffer: bytearray, frame: Frame) -> None:
    """Append a frame's bytes to `buffer`. Raises `Invalid`, leaving `buffer` as it was, if it is longer than a frame may be."""
    start = len(buffer)
    buffer += _NO_LENGTH
    try:
        _ENCODER.encode_into(frame, buffer, -1)
    except BaseException:
        del buffer[start:]
        raise
    size = len(buffer) - start - _LENGTH.size
    if size > MAX_FRAME:
        del buffer[start:]
        raise Invalid(f"A {type(frame).__name__} of {size} bytes does not fit a frame of {MAX_FRAME}.")
    _LENGTH.pack_into(buffer, start, size)


class Decoder:
    """Bytes in any pieces → frames. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises `Invalid` on what is no frame; the connection is of no use then."""
        frames: list[Frame] = []
        with memoryview(data) as view:
            at, end = self._complete(view, frames), len(view)
            while end - at >= 4:
                start = at + 4
                stop = start + _size(view, at)
                if stop > end:
                    break
                frames.append(_decode(view[start:stop]))
                at = stop
            self._rest += view[at:]
        return frames

    def _complete(self, view: memoryview, frames: list[Frame]) -> int:
        """Take what the unfinished frame still misses, and no more, so that whole ones are never copied together. Returns how
        much that was."""
        rest, at = self._rest, 0
        if not rest:
            return 0
        if len(rest) < 4:
            at = min(4 - len(rest), len(view))
            rest += view[:at]
            if len(rest) < 4:
                return at
        whole = 4 + _size(rest, 0)
        missing = view[at : at + whole - len(rest)]
        rest += missing
        if len(rest) == whole:
            with memoryview(rest) as frame:
                frames.append(_decode(frame[4:]))
            rest.clear()
        return at + len(missing)


def _size(data: bytearray | memoryview, at: int) -> int:
    size: int = _LENGTH.unpack_from(data, at)[0]
    if size > MAX_FRAME:
        raise Invalid(f"The peer announced a frame of {size} bytes; at most {MAX_FRAME} are allowed.")
    return size


def _decode(data: memoryview) -> Frame:
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(f"The peer sent bytes that are no frame: {error}.") from error
