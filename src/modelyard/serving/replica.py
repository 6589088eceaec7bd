"""The replica: one process, one model version, one engine, many calls from many gateways.

Started by the executor, usually in a sandbox, as `python -m modelyard.serving.replica --spec JSON` with the fields of
`ReplicaSpec` ('token', 'engine', 'folder', 'socket', 'threads', 'settings', 'model', 'nice'). The way of a call: the door's
`decode`, the transform's `before`, a batch, the engine and the transform's `after` in one worker thread, the door's `encode`.
It knows no database, no key and no HTTP; it outlives the control that asked for it and ends on SIGTERM, once its calls are
answered.
"""

from __future__ import annotations

from modelyard.jobs import confine

if __name__ == "__main__":  # before all the rest is loaded: those that are warm come first (decision 30)
    confine.make_way(confine.STARTING, attempts=1)

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from modelyard import telemetry
from modelyard.errors import Internal, ModelyardError, Overloaded, Unavailable
from modelyard.serving import coding
from modelyard.serving.batcher import Batcher
from modelyard.serving.batching import TYPICAL, Answer, Limits, Waiting
from modelyard.serving.best import DEFAULT
from modelyard.serving.channel import Channel
from modelyard.serving.copies import COMPARE, Comparing
from modelyard.serving.doors import DOORS, Codec
from modelyard.serving.faults import CANCELLED, late, unexpected
from modelyard.serving.frames import (
    ALONE,
    PIECE,
    BodyFrame,
    CallFrame,
    CancelFrame,
    EndFrame,
    Fault,
    Frame,
    Head,
    HealthFrame,
    PartFrame,
    Usage,
)
from modelyard.serving.model import Model, Spec, load
from modelyard.serving.peers import Peer, Pending, part
from modelyard.serving.polling import Polling
from modelyard.serving.sockets import listen
from modelyard.serving.stats import Stats, keep_loaded, resident

_log = telemetry.log(__name__)
# A failed replica stays this long for somebody to ask why, and this long after it was asked.
_UNASKED, _ASKED = 10.0, 0.2
_BROKEN = 3.0  # gateways ask at once, the controller every second: one that was ready stays for both
_MOST = 8192  # calls at once
_NOT_READY = {"loading": "is not ready", "draining": "is ending", "failed": "has failed"}
_NOTHING = Usage()


class Replica:
    """States: loading → ready → draining, or loading → failed. All methods run on the event loop's thread; `stop` is called
    with the exit code when the process may end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: Spec, stop: Callable[[int], None]) -> None:
        self._loop, self._stop = loop, stop
        self.state = "loading"
        self._error: ModelyardError | None = None
        self._asked = _ASKED
        self._model: Model | None = None
        self._batcher: Batcher | None = None
        self._codecs: dict[tuple[str, str], Codec] = {}
        self._reference = spec.model
        self.peers: set[Peer] = set()
        self._depth = 0
        self._settings, self._most = spec.settings, spec.settings.get("calls", _MOST)
        self._large, self._room = ThreadPoolExecutor(1, "decode", confine.take_turns, (0,)), coding.Room()
        self._cpu = self._owed = 0
        self._next = Polling(loop)  # the next call of somebody who calls alone, one after another

    def protocol(self) -> Channel:
        """The end of a new connection."""
        peer = Peer(self._loop, self.received, self.lost)
        self.peers.add(peer)
        return peer.channel

    def ready(self, model: Model) -> None:
        rows = self._settings.get("rows", model.best.rows if model.best is not None else DEFAULT)
        limits = Limits(rows, merge=model.merges, length=TYPICAL if model.ragged else 1)
        target = self._settings.get("target_us")
        self._model = model
        self._batcher = batcher = Batcher(
            self._loop,
            model.forward,
            limits,
            self._done,
            self._given_up,
            target=None if target is None else target / 1e6,
            open_outputs=model.open_outputs,
            broken=self.broken,
            known=model.known,
            yields=confine.make_way,
        )
        for size, seconds in model.times:
            batcher.pace.learn(size * limits.length, seconds)
        if self.state == "loading":
            self.state = "ready"

    def failed(self, error: ModelyardError) -> None:
        self.state, self._error = "failed", error
        self._loop.call_later(_UNASKED, self._stop, 1)

    def broken(self, error: ModelyardError, begun: Sequence[Waiting] = ()) -> None:
        """A model that was ready works no more: but those it had `begun` its calls go elsewhere; whoever asks is told why."""
        if self.state == "failed":
            return
        _log.error("model broken", code=error.code, error=error.message)
        self.state, self._error = "failed", error
        self._asked = _BROKEN
        refusal = self._refusal(0.0)
        assert refusal is not None
        for pending in [pending for peer in self.peers for pending in peer.calls.values()]:
            pending.cancel()
            why = error if pending.waiting in begun else refusal
            self._end(pending, _NOTHING, Fault(why.code, why.message))
        self._loop.call_later(_BROKEN, self._stop, 1)

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
        if type(frame) is CallFrame:
            self._begin(peer, frame)
        elif isinstance(frame, BodyFrame):
            self._continue(peer.calls.get(frame.id), frame)
        elif isinstance(frame, CancelFrame):
            peer.channel.drop(frame.id)
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
        refusal = self._refusal(frame.deadline)
        if refusal is not None:
            peer.channel.send(EndFrame(frame.id, Usage(), self._depth, Fault(refusal.code, refusal.message)))
            return
        if not self._depth:
            self._next.came()
            self._cpu, self._owed = time.thread_time_ns() - self._owed, 0  # what was spent idle is no call's
        self._depth += 1
        pending = peer.calls[frame.id] = Pending(peer, frame)
        if not frame.more:
            self._start(pending)

    def _refusal(self, deadline: float) -> ModelyardError | None:
        """Why a call is not taken. One that would be late is refused at once, before anything is spent on it."""
        if self.state != "ready":
            return Unavailable(f"The replica {_NOT_READY[self.state]}.")
        batcher = self._batcher
        assert batcher is not None
        if not self._depth or (batcher.at_ease(deadline) and self._depth < self._most):
            return None
        if self._depth >= self._most:
            batcher.stats.refused += 1
            return Overloaded(f"{self._depth} calls wait here already, as many as may; try again shortly.")
        left = deadline - time.time()
        over = batcher.overload(self._depth, left)
        if over is None:
            return None
        if left <= 0:
            return late()
        batcher.stats.refused += 1
        seconds, allowed = over
        ms, most = seconds * 1e3, allowed * 1e3
        return Overloaded(f"The answer would take {ms:.1f} ms, and {most:.1f} ms are allowed; try again shortly.")

    def _continue(self, pending: Pending | None, frame: BodyFrame) -> None:
        if pending is None:
            return
        pending.pieces.append(frame.data)
        if not frame.more:
            self._start(pending)

    def _start(self, pending: Pending) -> None:
        """Decode a call whose body is whole: small ones here, large and packed ones in a thread, so that nobody waits."""
        pending.whole = True
        if len(pending.pieces) == 1 and coding.PACKED not in pending.frame.head:
            self._prepared(pending, self._prepare(pending))
            return
        future = self._loop.run_in_executor(self._large, self._prepare, pending)
        future.add_done_callback(lambda done: self._prepared(pending, done.result()))

    def _prepare(self, pending: Pending) -> Waiting | ModelyardError:
        frame, model = pending.frame, self._model
        assert model is not None
        try:
            codec = self._codecs.get((frame.door, frame.verb)) or self._codec(frame, model)
            pieces, pending.pieces = pending.pieces, []
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if coding.PACKED in frame.head:
                body = self._room.unpack(frame.head, body)
                pending.unpacked = len(body)
            pending.question = codec.decode(frame.head, body)
            arrays, rows = model.prepare(pending.question.inputs)
            return Waiting(arrays, rows, frame.deadline, pending, model.ragged)
        except ModelyardError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the edge of a call: a defect fails this call, not the process
            return unexpected(error, frame)

    def _codec(self, frame: CallFrame, model: Model) -> Codec:
        codec = DOORS.get(frame.door).codec(model.signature, self._reference)
        if frame.verb == COMPARE:
            codec = Comparing(codec, str(model.metadata["task"]))
        self._codecs[frame.door, frame.verb] = codec
        return codec

    def _prepared(self, pending: Pending, result: Waiting | ModelyardError) -> None:
        if pending.cancelled:
            self._end(pending, _NOTHING, CANCELLED)
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
        pending.cancel()
        if pending.waiting is None and not pending.whole:
            self._end(pending, _NOTHING, CANCELLED)

    def _given_up(self, waiting: Waiting) -> None:
        why = late()
        self._end(waiting.call, _NOTHING, CANCELLED if waiting.cancelled else Fault(why.code, why.message))

    def _done(self, batch: Sequence[Waiting], answers: Sequence[Answer], cpu_us: int) -> None:
        """Encode and send a batch's answers, each as soon as it is encoded. Processor time of both threads is shared out by
        rows; what the encoding takes is told with the next batch."""
        mark = time.thread_time_ns()
        cpu_us += (mark - self._cpu) // 1000
        self._cpu = mark
        total = sum(waiting.rows for waiting in batch)
        units = 0
        for waiting, answer in zip(batch, answers, strict=True):
            pending: Pending = waiting.call
            if pending.since and self._batcher is not None:
                pending.queued, pending.ran = waiting.since, self._batcher.ran
            result = self._encode(pending, answer)
            share = cpu_us * waiting.rows // total
            if isinstance(result, ModelyardError):
                self._end(pending, Usage(0, share), Fault(result.code, result.message))
                continue
            units += waiting.rows
            usage = Usage(waiting.rows, share)
            head, body = result
            if not coding.wants_packing(pending.frame.head, head, body):
                self._answer(pending, usage, head, body)
            elif len(body) <= PIECE:
                self._answer(pending, usage, *coding.pack(head, body))
            else:
                self._pack(pending, usage, head, body)
        if self._batcher is not None:
            self._batcher.stats.units += units
        if not self._depth:
            self._owed = time.thread_time_ns() - mark
            if len(batch) == 1:
                self._next.begin()

    def _pack(self, pending: Pending, usage: Usage, head: Head, body: bytes) -> None:
        """Pack a large answer in a thread, so that nobody waits for it."""
        packing = self._loop.run_in_executor(self._large, coding.pack, head, body)
        packing.add_done_callback(lambda done: self._answer(pending, usage, *done.result()))

    def _answer(self, pending: Pending, usage: Usage, head: Head, body: bytes) -> None:
        if len(body) <= PIECE:
            self._end(pending, usage, None, body, head)
            return
        pending.peer.channel.send_whole(PartFrame(pending.frame.id, 0, usage.units, body, head))
        self._end(pending, usage, None)

    def _encode(self, pending: Pending, answer: Answer) -> tuple[Head, bytes] | ModelyardError:
        if isinstance(answer, ModelyardError):
            return answer
        frame, question = pending.frame, pending.question
        assert question is not None
        try:
            return self._codecs[frame.door, frame.verb].encode(question, frame.deployment, frame.version, answer)
        except ModelyardError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the edge of a call: a defect fails this call, not the process
            return unexpected(error, frame)

    def _end(self, pending: Pending, usage: Usage, error: Fault | None, data: bytes | None = None, head: Head = None) -> None:
        number, peer = pending.frame.id, pending.peer
        if peer.calls.pop(number, None) is None:
            return
        pending.waiting = None  # each knows the other: what ends goes by counting, and nobody must look for it
        self._depth -= 1
        if pending.unpacked:
            self._room.give(pending.unpacked)
        peer.channel.send(EndFrame(number, usage, self._depth, error, data, head, pending.times if pending.since else None))
        if self.state == "draining" and not self._depth:
            self._stop(0)

    def _tell(self, peer: Peer, asked: HealthFrame) -> None:
        if asked.state:
            self._next.alone = asked.state == ALONE
        batcher = self._batcher
        if self.state == "ready" and batcher is not None and (hung := batcher.hung(time.time())):
            self.broken(*hung)  # while those who wait behind it have time left to go elsewhere
        metadata = self._model.metadata if self._model is not None else {}
        fault = Fault(self._error.code, self._error.message) if self._error is not None else None
        stats = batcher.stats if batcher is not None else Stats()
        told = {**stats.to_wire(), "memory": resident(), "peers": len(self.peers) - 1}
        peer.channel.send(HealthFrame(asked.seq, self.state, metadata, fault, self._depth, stats.batches, told))
        if self.state == "failed":
            self._loop.call_later(self._asked, self._stop, 1)


async def _loaded(loop: asyncio.AbstractEventLoop, spec: Spec, replica: Replica) -> None:
    try:
        model = await loop.run_in_executor(None, load, spec, partial(confine.make_way, spec.nice))
    except ModelyardError as error:
        _log.error("model not loaded", code=error.code, error=error.message)
        replica.failed(error)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever a model's code raises is why
        _log.exception("model not loaded")
        why = str(error).partition("\n")[0].replace(spec.folder, "")[:300]  # the machine's paths are nobody's business
        replica.failed(Internal(f"The model cannot be loaded: {type(error).__name__}: {why}"))
    else:
        keep_loaded()
        replica.ready(model)
        confine.take_turns(confine.SHORT)  # the thread that answers, not the one that computes


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
    await part(replica.peers)
    return code


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="modelyard.serving.replica", description="One model version behind a Unix socket.")
    parser.add_argument("--spec", required=True, help="the replica's specification as JSON")
    spec = msgspec.json.decode(parser.parse_args(arguments).spec, type=Spec)
    telemetry.configure("replica")
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.threads))
    confine.make_way(spec.nice, attempts=100 if spec.nice > confine.STARTING else 0)  # users' code makes way as it loads, too
    code = uvloop.run(serve(spec))
    sys.stderr.flush()
    os._exit(code)  # a library's threads may not want to end


if __name__ == "__main__":
    confine.give_up(sessions=True)
    main()
