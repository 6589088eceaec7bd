"""The replica: one process, one model version, one engine, many calls from many gateways.

Started by the executor, usually in a sandbox, as `python -m modelyard.serving.replica --spec JSON` with the fields of
`ReplicaSpec` ('token', 'engine', 'folder', 'socket', 'threads', 'settings'). The way of a call: the door's `decode`, the
transform's `before`, a batch, the engine and the transform's `after` in one worker thread, the door's `encode`. It knows no
database, no key and no HTTP; it outlives the control that asked for it and ends on SIGTERM, once its calls are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from modelyard import telemetry
from modelyard.data.transforms import Transform, build
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard
from modelyard.errors import Internal, Invalid, ModelyardError, TimedOut, Unavailable
from modelyard.jobs import confine
from modelyard.serving import coding
from modelyard.serving.batching import Answer, Batcher, Limits, Waiting
from modelyard.serving.channel import Channel
from modelyard.serving.doors import DOORS, Codec, Question
from modelyard.serving.frames import (
    PIECE,
    BodyFrame,
    CallFrame,
    CancelFrame,
    EndFrame,
    Fault,
    Frame,
    HealthFrame,
    PartFrame,
    Usage,
)
from modelyard.serving.sockets import listen
from modelyard.tensors import Array

_log = telemetry.log(__name__)
# A failed replica stays this long for somebody to ask why, and this long after it was asked.
_UNASKED, _ASKED = 10.0, 0.2
_NOTHING = Usage()
_CANCELLED = Fault("cancelled", "The caller went away.")


class Spec(msgspec.Struct, frozen=True):
    """What to serve and where. `settings`: 'rows' in one batch at most, 'calls' in the replica at once at most."""

    token: str
    engine: str
    folder: str
    socket: str
    threads: int = 1
    settings: dict[str, int] = {}


class Model:
    """A loaded model: its public signature, and the way from public arrays to public arrays."""

    def __init__(self, engine: BatchEngine, transform: Transform, task: str, platform: str) -> None:
        self.engine, self.transform = engine, transform
        self.signature = transform.signature(engine.signature)
        self.metadata = {
            "platform": platform,
            "task": task,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
        }
        self._names = frozenset(spec.name for spec in self.signature.outputs)

    @property
    def merges(self) -> bool:
        """Whether calls can share a batch: not where the graph states the size of dim 0."""
        return all(spec.shape is None or spec.shape[:1] == (-1,) for spec in self.engine.signature.inputs)

    def prepare(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
        """The engine's arrays of a call and their number of rows."""
        arrays = self.transform.before(inputs)
        if len(arrays) == 1:
            (array,) = arrays.values()
            return arrays, array.shape[0] if array.ndim else 1
        rows = {array.shape[0] if array.ndim else 1 for array in arrays.values()}
        if len(rows) != 1:
            raise Invalid(f"The inputs have {' and '.join(map(str, sorted(rows)))} rows (dim 0); expected the same number.")
        return arrays, rows.pop()

    def forward(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = self.transform.after(self.engine.forward(batch))
        if not self._names <= outputs.keys():
            raise Internal(f"The model answered without {', '.join(sorted(self._names - outputs.keys()))}.")
        return outputs


def load(spec: Spec) -> Model:
    """The model in an artefact's folder. Raises what the card, the engine or the transform find wrong."""
    folder = Path(spec.folder)
    card = ModelCard.load(folder)
    engine: Any = ENGINES.get(spec.engine)(folder, card)
    if not hasattr(engine, "forward"):
        raise Invalid(f"Engine '{spec.engine}' is no batch engine, the only kind this replica runs.")
    return Model(engine, build(card.transform), card.task, f"modelyard_{spec.engine}")


class Peer:
    """A connection from a gateway, and its calls that are not ended."""

    def __init__(self, replica: Replica, loop: asyncio.AbstractEventLoop) -> None:
        self.calls: dict[int, Pending] = {}
        self.channel = Channel(loop, lambda frame: replica.received(self, frame), lambda _: replica.lost(self))


class Pending:
    """A call in this replica, from its CALL to its END."""

    __slots__ = ("body", "cancelled", "frame", "peer", "question", "unpacked", "waiting", "whole")

    def __init__(self, peer: Peer, frame: CallFrame) -> None:
        self.peer, self.frame = peer, frame
        self.body: bytes | bytearray = frame.data
        self.question: Question | None = None
        self.waiting: Waiting | None = None
        self.whole = False
        self.cancelled = False
        self.unpacked = 0


class Replica:
    """States: loading → ready → draining, or loading → failed. All methods run on the event loop's thread; `stop` is called
    with the exit code when the process may end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: Spec, stop: Callable[[int], None]) -> None:
        self._loop, self._stop = loop, stop
        self.state = "loading"
        self._error: ModelyardError | None = None
        self._model: Model | None = None
        self._batcher: Batcher | None = None
        self._codecs: dict[str, Codec] = {}
        self.peers: set[Peer] = set()
        self._depth = 0
        self._rows, self._most = spec.settings.get("rows", 128), spec.settings.get("calls", 8192)
        self._large, self._room = ThreadPoolExecutor(1, "decode"), coding.Room()
        self._cpu = 0

    def protocol(self) -> Channel:
        """The end of a new connection."""
        peer = Peer(self, self._loop)
        self.peers.add(peer)
        return peer.channel

    def ready(self, model: Model) -> None:
        limits = Limits(self._rows, merge=model.merges)
        self._model = model
        self._batcher = Batcher(self._loop, model.forward, limits, self._done, self._given_up)
        if self.state == "loading":
            self.state = "ready"

    def failed(self, error: ModelyardError) -> None:
        self.state, self._error = "failed", error
        self._loop.call_later(_UNASKED, self._stop, 1)

    def drain(self) -> None:
        """Take no new calls; stop when those here are answered."""
        if self.state == "failed":
            self._stop(1)
            return
        self.state = "draining"
        if not self._depth:
            self._stop(0)

    def received(self, peer: Peer, frame: Frame) -> None:
        """Frames from a gateway. Those of calls that have ended are late, not wrong."""
        if isinstance(frame, CallFrame):
            self._begin(peer, frame)
        elif isinstance(frame, BodyFrame):
            self._continue(peer.calls.get(frame.id), frame)
        elif isinstance(frame, CancelFrame):
            self._cancel(peer.calls.get(frame.id))
        elif isinstance(frame, HealthFrame):
            self._tell(peer, frame)

    def lost(self, peer: Peer) -> None:
        """A gateway is gone: nobody waits for its calls."""
        self.peers.discard(peer)
        for pending in list(peer.calls.values()):
            self._cancel(pending)

    def _begin(self, peer: Peer, frame: CallFrame) -> None:
        if frame.id in peer.calls:
            return  # a number used twice would be counted twice and ended once
        refusal = self._refusal()
        if refusal is not None:
            peer.channel.send(EndFrame(frame.id, Usage(), self._depth, Fault(refusal.code, refusal.message)))
            return
        if not self._depth:
            self._cpu = time.thread_time_ns()  # what was spent idle is no call's
        self._depth += 1
        pending = peer.calls[frame.id] = Pending(peer, frame)
        if not frame.more:
            self._start(pending)

    def _refusal(self) -> ModelyardError | None:
        if self.state == "ready":
            return Unavailable("The replica is busy; try again shortly.") if self._depth >= self._most else None
        return Unavailable("The replica is not ready." if self.state == "loading" else "The replica is ending.")

    def _continue(self, pending: Pending | None, frame: BodyFrame) -> None:
        if pending is None:
            return
        if isinstance(pending.body, bytes):
            pending.body = bytearray(pending.body)
        pending.body += frame.data
        if not frame.more:
            self._start(pending)

    def _start(self, pending: Pending) -> None:
        """Decode a call whose body is whole: small ones here, large and packed ones in a thread, so that nobody waits."""
        pending.whole = True
        if len(pending.body) <= PIECE and coding.PACKED not in pending.frame.head:
            self._prepared(pending, self._prepare(pending))
            return
        future = self._loop.run_in_executor(self._large, self._prepare, pending)
        future.add_done_callback(lambda done: self._prepared(pending, done.result()))

    def _prepare(self, pending: Pending) -> Waiting | ModelyardError:
        frame, model = pending.frame, self._model
        assert model is not None
        try:
            codec = self._codecs.get(frame.door)
            if codec is None:
                codec = self._codecs[frame.door] = DOORS.get(frame.door).codec(model.signature)
            body = bytes(pending.body)
            if coding.PACKED in frame.head:
                body = self._room.unpack(frame.head, body)
                pending.unpacked = len(body)
            pending.question = codec.decode(frame.head, body)
            pending.body = b""
            arrays, rows = model.prepare(pending.question.inputs)
            return Waiting(arrays, rows, frame.deadline, pending)
        except ModelyardError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the edge of a call: a defect fails this call, not the process
            return _unexpected(error, frame)

    def _prepared(self, pending: Pending, result: Waiting | ModelyardError) -> None:
        if pending.cancelled:
            self._end(pending, _NOTHING, _CANCELLED)
        elif isinstance(result, ModelyardError):
            self._end(pending, _NOTHING, Fault(result.code, result.message))
        else:
            assert self._batcher is not None
            pending.waiting = result
            self._batcher.put(result)

    def _cancel(self, pending: Pending | None) -> None:
        """A call that is not being computed yet never will be; one that is ends as usual."""
        if pending is None:
            return
        pending.cancelled = True
        if pending.waiting is not None:
            pending.waiting.cancelled = True
        elif not pending.whole:
            self._end(pending, _NOTHING, _CANCELLED)

    def _given_up(self, waiting: Waiting) -> None:
        late = TimedOut("The call's time was used up before it was computed.")
        self._end(waiting.call, _NOTHING, _CANCELLED if waiting.cancelled else Fault(late.code, late.message))

    def _done(self, batch: Sequence[Waiting], answers: Sequence[Answer], cpu_us: int) -> None:
        """Encode and send a batch's answers. Processor time of both threads is shared out by rows."""
        encoded = [self._encode(waiting.call, answer) for waiting, answer in zip(batch, answers, strict=True)]
        mark = time.thread_time_ns()
        cpu_us += (mark - self._cpu) // 1000
        self._cpu = mark
        total = sum(waiting.rows for waiting in batch)
        for waiting, result in zip(batch, encoded, strict=True):
            pending: Pending = waiting.call
            share = cpu_us * waiting.rows // total
            if isinstance(result, ModelyardError):
                self._end(pending, Usage(0, share), Fault(result.code, result.message))
                continue
            usage = Usage(waiting.rows, share)
            if not coding.wants_packing(pending.frame.head, *result):
                self._answer(pending, usage, *result)
            elif len(result[1]) <= PIECE:
                self._answer(pending, usage, *coding.pack(*result))
            else:
                self._pack(pending, usage, *result)

    def _pack(self, pending: Pending, usage: Usage, head: dict[str, str] | None, body: bytes) -> None:
        """Pack a large answer in a thread, so that nobody waits for it."""
        packing = self._loop.run_in_executor(self._large, coding.pack, head, body)
        packing.add_done_callback(lambda done: self._answer(pending, usage, *done.result()))

    def _answer(self, pending: Pending, usage: Usage, head: dict[str, str] | None, body: bytes) -> None:
        pending.peer.channel.send_whole(PartFrame(pending.frame.id, 0, usage.units, body, head))
        self._end(pending, usage, None)

    def _encode(self, pending: Pending, answer: Answer) -> tuple[dict[str, str] | None, bytes] | ModelyardError:
        if isinstance(answer, ModelyardError):
            return answer
        frame, question = pending.frame, pending.question
        assert question is not None
        try:
            return self._codecs[frame.door].encode(question, frame.deployment, frame.version, answer)
        except ModelyardError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the edge of a call: a defect fails this call, not the process
            return _unexpected(error, frame)

    def _end(self, pending: Pending, usage: Usage, error: Fault | None) -> None:
        if pending.peer.calls.pop(pending.frame.id, None) is None:
            return
        self._depth -= 1
        if pending.unpacked:
            self._room.give(pending.unpacked)
        pending.peer.channel.send(EndFrame(pending.frame.id, usage, self._depth, error))
        if self.state == "draining" and not self._depth:
            self._stop(0)

    def _tell(self, peer: Peer, asked: HealthFrame) -> None:
        metadata = self._model.metadata if self._model is not None else {}
        fault = Fault(self._error.code, self._error.message) if self._error is not None else None
        steps = self._batcher.steps if self._batcher is not None else 0
        peer.channel.send(HealthFrame(asked.seq, self.state, metadata, fault, self._depth, steps))
        if self.state == "failed":
            self._loop.call_later(_ASKED, self._stop, 1)


def _unexpected(error: Exception, frame: CallFrame) -> Internal:
    telemetry.UNEXPECTED.labels("replica").inc()
    _log.exception("call failed", call=frame.head.get("x-request-id"), error=repr(error)[:500])
    return Internal()


async def _loaded(loop: asyncio.AbstractEventLoop, spec: Spec, replica: Replica) -> None:
    try:
        model = await loop.run_in_executor(None, load, spec)
    except ModelyardError as error:
        _log.error("model not loaded", code=error.code, error=error.message)
        replica.failed(error)
    except Exception as error:  # noqa: BLE001 - the edge of the process: whatever a model's code raises is why it is not ready
        _log.exception("model not loaded")
        why = str(error).partition("\n")[0].replace(spec.folder, "")[:300]  # the machine's paths are nobody's business
        replica.failed(Internal(f"The model cannot be loaded: {type(error).__name__}: {why}"))
    else:
        gc.collect()
        gc.freeze()  # what is loaded stays, and what a call makes is freed by counting: look for cycles rarely
        gc.set_threshold(50_000, 20, 50)
        replica.ready(model)
        _log.info("ready", token=spec.token)


async def serve(spec: Spec) -> int:
    """Load and serve until drained. Returns the exit code: 0 drained, 1 the model could not be loaded."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    replica = Replica(loop, spec, lambda code: None if ended.done() else ended.set_result(code))
    path = Path(spec.socket)
    server = await loop.create_unix_server(replica.protocol, sock=listen(path))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.drain)
    loading = asyncio.ensure_future(_loaded(loop, spec, replica))
    code = await ended
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - a local path, at the very end
    server.close()
    loading.cancel()
    for peer in list(replica.peers):
        peer.channel.close()
    for _ in range(100):  # until the last answers are taken
        if not replica.peers:
            break
        await asyncio.sleep(0.01)
    return code


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="modelyard.serving.replica", description="One model version behind a Unix socket.")
    parser.add_argument("--spec", required=True, help="the replica's specification as JSON")
    spec = msgspec.json.decode(parser.parse_args(arguments).spec, type=Spec)
    telemetry.configure("replica")
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.threads))
    code = uvloop.run(serve(spec))
    sys.stderr.flush()
    os._exit(code)  # a library's threads may not want to end


if __name__ == "__main__":
    confine.give_up()
    main()
