"""A replica with a fake engine, its frames fed and read by hand: what it answers, refuses, cancels and counts."""

from __future__ import annotations

import asyncio
import gzip
import json
import stat
import threading
import time

import numpy as np
import pytest
from serving_fakes import FakeTransport, call, frames

from modelyard.data.transforms import build
from modelyard.engines.base import ENGINES, ModelCard, TensorCard
from modelyard.errors import Internal, Invalid, NotFound
from modelyard.serving import peers
from modelyard.serving.frames import (
    PIECE,
    BodyFrame,
    CancelFrame,
    Decoder,
    EndFrame,
    HealthFrame,
    PartFrame,
    Usage,
    append,
)
from modelyard.serving.model import Model, Spec, load
from modelyard.serving.replica import Replica, listen
from modelyard.tensors import Signature, TensorSpec
from modelyard.testing import FakeEngine, FakeStreamEngine

SPEC = Spec("t", "fake", "/nowhere", "/nowhere/replica.sock")


def card(shape=(-1, 2), **fields):
    inputs = (TensorCard(name="x", datatype="FP32", shape=shape),)
    outputs = (TensorCard(name="y", datatype="FP32", shape=(-1, 1)),)
    return ModelCard(task="tabular-regression", engines=("fake",), files={}, inputs=inputs, outputs=outputs, **fields)


def question(*rows, **fields):
    data = [[float(row), float(row)] for row in rows]
    body = {"inputs": [{"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": data}], **fields}
    return json.dumps(body).encode()


class Bench:
    """A ready replica, and a gateway's end that is a decoder."""

    def __init__(self, engine=None, spec=SPEC, ready=True, transform=None):
        self.engine = engine or FakeEngine(card=card())
        self.stopped = []
        self.replica = Replica(asyncio.get_running_loop(), spec, self.stopped.append)
        self.model = Model(self.engine, transform or build(None), "tabular-regression", "modelyard_fake")
        if ready:
            self.replica.ready(self.model)
        self.got = []
        self.channel, self.transport, self.decoder = self.connect()

    def connect(self):
        channel = self.replica.protocol()
        transport = FakeTransport(channel)
        channel.connection_made(transport)
        return channel, transport, Decoder()

    def say(self, *said):
        buffer = bytearray()
        for frame in said:
            append(buffer, frame)
        self.channel.data_received(bytes(buffer))

    async def until(self, ends):
        for _ in range(5000):
            self.got += self.decoder.feed(self.transport.take())
            if sum(isinstance(frame, EndFrame) for frame in self.got) >= ends:
                await asyncio.sleep(0.002)
                self.got += self.decoder.feed(self.transport.take())
                return
            await asyncio.sleep(0.001)
        raise AssertionError(f"only {self.got}")

    def end(self, number):
        [end] = [frame for frame in self.got if isinstance(frame, EndFrame) and frame.id == number]
        return end

    def pieces(self):
        """What holds a piece of an answer: PARTs, and ENDs of small ones."""
        return [f for f in self.got if isinstance(f, PartFrame) or (isinstance(f, EndFrame) and f.data is not None)]

    def answer(self, number):
        parts = [frame for frame in self.pieces() if frame.id == number]
        return json.loads(b"".join(part.data for part in parts))["outputs"][0]["data"]


def scene(test):
    def run():
        asyncio.run(asyncio.wait_for(test(), 30))

    run.__name__ = test.__name__
    return run


@scene
async def test_calls_of_one_turn_are_one_batch_and_nobody_gets_anothers_rows():
    bench = Bench()
    bench.say(*(call(number, question(*range(number, number + 1 + number % 3))) for number in range(20)))
    await bench.until(20)
    for number in range(20):
        assert bench.answer(number) == [2.0 * row for row in range(number, number + 1 + number % 3)]
        assert bench.end(number).error is None
        assert bench.end(number).usage.units == 1 + number % 3
    assert len(bench.engine.batches) == 1
    assert bench.got[-1].queue_depth == 0


@scene
async def test_a_body_in_pieces_in_and_out():
    bench = Bench()
    rows = 60_000
    blob = np.arange(rows * 2, dtype="<f4").tobytes()
    header = {"inputs": [{"name": "x", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(blob)}}]}
    text = json.dumps({**header, "parameters": {"binary_data_output": True}}).encode()
    body = text + blob
    head = {"inference-header-content-length": str(len(text))}
    first = call(1, body[:PIECE], head=head, more=True)
    pieces = [BodyFrame(1, body[at : at + PIECE], at + PIECE < len(body)) for at in range(PIECE, len(body), PIECE)]
    bench.say(call(2, question(5)), first, *pieces[:3], call(3, question(6)), *pieces[3:])
    await bench.until(3)
    parts = [frame for frame in bench.got if isinstance(frame, PartFrame) and frame.id == 1]
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    answer = b"".join(part.data for part in parts)[int(parts[0].head["inference-header-content-length"]) :]
    np.testing.assert_allclose(np.frombuffer(answer, "<f4"), np.arange(rows * 2).reshape(rows, 2).sum(axis=1))
    assert bench.answer(2) == [10.0]
    assert bench.answer(3) == [12.0]


@scene
async def test_a_wrong_request_fails_alone():
    bench = Bench()
    bench.say(call(1, question(1)), call(2, b"nonsense"), call(3, question(3), door="nosuch"), call(4, question(4)))
    await bench.until(4)
    assert [bench.end(number).error and bench.end(number).error.code for number in (1, 2, 3, 4)] == [
        None,
        "invalid_request",
        "not_found",
        None,
    ]
    assert "not valid JSON" in bench.end(2).error.message


@scene
async def test_a_model_that_fails_is_an_error_of_the_call():
    bench = Bench(FakeEngine(card=card(), failure=RuntimeError("no luck")))
    bench.say(call(1, question(1)), call(2, question(2)))
    await bench.until(2)
    assert bench.end(1).error.code == "internal"
    assert bench.end(1).error.message == "The model failed: RuntimeError: no luck"
    assert bench.end(1).usage.units == 0
    assert not bench.stopped


class Leaky(FakeEngine):
    def forward(self, batch):
        return {"other": super().forward(batch)["y"]}


@scene
async def test_a_model_without_its_output():
    bench = Bench(Leaky(card=card()))
    bench.say(call(1, question(1)))
    await bench.until(1)
    assert bench.end(1).error.message == "The model answered without 'y'."


@pytest.mark.parametrize(
    ("answered", "says"),
    [
        (lambda rows: np.zeros((rows, 7), "f4"), "float32 [2, 7]; it declares FP32 [-1, 1]"),
        (lambda rows: np.zeros(rows, "f4"), "float32 [2]; it declares FP32 [-1, 1]"),
        (lambda rows: np.zeros((rows, 1), "f8"), "float64 [2, 1]; it declares FP32 [-1, 1]"),
        (lambda rows: [[0.0]] * rows, "a list; expected an array"),
        (lambda rows: np.zeros((rows + 1, 1), "f4"), "[3, 1] for 2 rows"),
    ],
)
def test_an_output_that_is_not_as_declared_is_the_models_failure(answered, says):
    class Odd(FakeEngine):
        def forward(self, batch):
            good = super().forward(batch)
            return {"y": answered(len(good["y"]))} if np.any(batch["x"] < 0) else good

    @scene
    async def run():
        bench = Bench(Odd(card=card()))
        bench.say(call(1, question(1)))
        await bench.until(1)
        bench.say(call(2, question(-1, -1)), call(3, question(4)))
        await bench.until(3)
        assert (bench.end(2).error.code, bench.end(2).usage.units) == ("internal", 0)
        assert says in bench.end(2).error.message
        assert bench.answer(3) == [8.0]
        assert bench.replica._batcher.stats.failures == 1

    run()


class Gated(FakeEngine):
    """Computes when the test says so."""

    def __init__(self, shape=(-1, 2), **options):
        super().__init__(card=card(shape), **options)
        self.entered, self.go = threading.Event(), threading.Event()

    def forward(self, batch):
        self.entered.set()
        assert self.go.wait(20)
        return super().forward(batch)


async def entered(engine):
    await asyncio.to_thread(engine.entered.wait, 20)


@scene
async def test_what_is_cancelled_before_it_is_computed_never_is():
    bench = Bench(Gated())
    bench.say(call(1, question(1)))
    await entered(bench.engine)
    bench.say(call(2, question(2)), call(3, question(3)), call(4, b"half", more=True))
    bench.say(CancelFrame(1), CancelFrame(2), CancelFrame(4), CancelFrame(99))
    bench.engine.go.set()
    await bench.until(4)
    assert bench.end(1).error is None  # it was being computed, and is counted
    assert bench.end(1).usage.units == 1
    assert bench.end(2).error.code == bench.end(4).error.code == "cancelled"
    assert bench.end(3).error is None
    assert sum(bench.engine.batches) == 2
    bench.say(BodyFrame(4, b"rest"))


@scene
async def test_a_large_answer_that_nobody_wants_ends_soon():
    bench = Bench()
    rows = 200_000
    blob = np.zeros((rows, 2), "<f4").tobytes()
    header = {"inputs": [{"name": "x", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(blob)}}]}
    text = json.dumps({**header, "parameters": {"binary_data_output": True}}).encode()
    head = {"inference-header-content-length": str(len(text))}
    body = text + blob
    bench.transport.limit = 1  # nobody reads
    first = call(1, body[:PIECE], head=head, more=True)
    bench.say(first, *(BodyFrame(1, body[at : at + PIECE], at + PIECE < len(body)) for at in range(PIECE, len(body), PIECE)))
    for _ in range(5000):
        if bench.channel.backlog:
            break
        await asyncio.sleep(0.001)
    bench.say(CancelFrame(1))
    bench.transport.drained()
    await bench.until(1)
    assert sum(len(frame.data) for frame in bench.got if isinstance(frame, PartFrame)) < rows * 4


@scene
async def test_what_is_late_is_not_computed():
    bench = Bench(Gated())
    bench.say(call(1, question(1)))
    await entered(bench.engine)
    bench.say(call(2, question(2), deadline=time.time() - 1), call(3, question(3), deadline=time.time() + 50))
    bench.engine.go.set()
    await bench.until(3)
    assert bench.end(2).error.code == "timed_out"
    assert sum(bench.engine.batches) == 2


@scene
async def test_the_calls_of_a_lost_gateway_are_not_computed():
    bench = Bench(Gated())
    bench.say(call(1, question(1)))
    await entered(bench.engine)
    bench.say(call(2, question(2)), call(3, b"half", more=True))
    bench.transport.closed = False
    bench.channel.connection_lost(None)
    assert not bench.replica.peers
    bench.channel, bench.transport, bench.decoder = bench.connect()
    bench.got.clear()
    bench.say(call(1, question(9)))
    bench.engine.go.set()
    await bench.until(1)
    assert bench.answer(1) == [18.0]
    assert sum(bench.engine.batches) == 2


@scene
async def test_two_gateways_share_a_batch_and_keep_their_answers():
    bench = Bench()
    other = Bench.connect(bench)
    bench.say(call(7, question(1)))
    buffer = bytearray()
    append(buffer, call(7, question(2)))
    other[0].data_received(bytes(buffer))
    await bench.until(1)
    assert bench.answer(7) == [2.0]
    [end] = frames(other[1].take())
    assert json.loads(end.data)["outputs"][0]["data"] == [4.0]
    assert len(bench.engine.batches) == 1


@scene
async def test_health():
    bench = Bench(ready=False)
    bench.say(HealthFrame(1), call(1, question(1)))
    await bench.until(1)
    health = bench.got[0]
    assert (health.seq, health.state, health.metadata) == (1, "loading", {})
    assert bench.end(1).error.code == "unavailable"
    bench.replica.ready(bench.model)
    bench.say(call(2, question(1)))
    await bench.until(2)
    bench.got.clear()
    bench.say(HealthFrame(2))
    await asyncio.sleep(0.002)
    [health] = bench.decoder.feed(bench.transport.take())
    assert (health.seq, health.state, health.steps, health.queue_depth) == (2, "ready", 1, 0)
    assert health.metadata == {
        "platform": "modelyard_fake",
        "task": "tabular-regression",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }


@scene
async def test_it_waits_awake_only_once_it_was_told_that_it_is_alone():
    bench = Bench()
    found = []
    for state in ("", "alone", "", "shared"):  # control asks without a word of that
        bench.say(HealthFrame(1, state))
        found.append(bench.replica._next.alone)
    assert found == [False, True, True, False]


@scene
async def test_a_failed_load_is_told_and_then_ends():
    bench = Bench(ready=False)
    bench.replica.failed(Invalid("no such file"))
    bench.say(HealthFrame(1))
    for _ in range(1000):
        if bench.stopped:
            break
        await asyncio.sleep(0.002)
    [health] = bench.decoder.feed(bench.transport.take())
    assert (health.state, health.error.code, health.error.message) == ("failed", "invalid_request", "no such file")
    assert bench.stopped == [1]


@scene
async def test_draining_finishes_what_is_here_and_refuses_the_rest():
    bench = Bench(Gated())
    bench.say(call(1, question(1)))
    await entered(bench.engine)
    bench.say(call(2, question(2)))
    bench.replica.drain()
    bench.say(call(3, question(3)))
    assert not bench.stopped
    bench.engine.go.set()
    await bench.until(3)
    assert [bench.end(number).error is None for number in (1, 2, 3)] == [True, True, False]
    assert bench.end(3).error.code == "unavailable"
    assert bench.stopped == [0]


@scene
async def test_draining_with_nothing_to_do():
    bench = Bench()
    bench.replica.drain()
    assert bench.stopped == [0]
    failed = Bench(ready=False)
    failed.replica.failed(Invalid("x"))
    failed.replica.drain()
    assert failed.stopped == [1]


@pytest.mark.parametrize("reads", [True, False])
def test_the_last_answers_are_taken_however_slowly_before_a_drained_replica_ends(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(peers, "_IDLE", 0.2)
    size = 40 * PIECE

    @scene
    async def test():
        bench, loop, connected = Bench(), asyncio.get_running_loop(), asyncio.Event()

        def protocol():
            connected.set()
            return bench.replica.protocol()

        server = await loop.create_unix_server(protocol, tmp_path / "r.sock")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "r.sock", limit=PIECE)
        await connected.wait()
        bench.channel.connection_lost(None)
        [peer] = bench.replica.peers
        peer.channel.send_whole(PartFrame(1, 0, 1, b"y" * size))
        peer.channel.send(EndFrame(1, Usage(1, 1), 0))
        bench.replica.drain()
        assert bench.stopped == [0]
        parting, began, taken = asyncio.ensure_future(peers.part(bench.replica.peers)), loop.time(), []
        parting.add_done_callback(lambda _: taken.append(not bench.replica.peers))
        if not reads:
            await parting
            assert loop.time() - began < 5
        else:
            decoder, got = Decoder(), []
            while data := await reader.read(PIECE):
                got += decoder.feed(data)
                await asyncio.sleep(0.02)
            await parting
            assert loop.time() - began > 0.4
            assert sum(len(frame.data) for frame in got[:-1]) == size
            assert isinstance(got[-1], EndFrame)
        assert taken == [reads]
        writer.close()
        server.close()

    test()


@scene
async def test_a_full_replica_refuses():
    bench = Bench(Gated(), Spec("t", "fake", "", "", settings={"calls": 2}))
    bench.say(call(1, question(1)), call(2, question(2)), call(3, question(3)))
    bench.engine.go.set()
    await bench.until(3)
    assert bench.end(3).error.code == "overloaded"
    assert bench.end(3).error.message == "2 calls wait here already, as many as may; try again shortly."
    assert bench.replica._batcher.stats.refused == 1


@scene
async def test_a_call_that_would_be_late_is_refused_undecoded():
    bench = Bench(Gated(), Spec("t", "fake", "", "", settings={"target_us": 50_000}))
    for rows in (1, 2, 4):
        bench.replica._batcher.pace.learn(rows, 0.04 * rows)
    bench.say(call(1, question(1)))
    await entered(bench.engine)
    bench.say(call(2, question(2)), call(3, b"nonsense"))
    await bench.until(1)
    assert bench.end(3).error.code == "overloaded"
    assert "50.0 ms are allowed" in bench.end(3).error.message
    bench.engine.go.set()
    await bench.until(3)
    assert bench.end(1).error is bench.end(2).error is None  # where nothing waits the target does not count
    bench.say(HealthFrame(1))
    await asyncio.sleep(0.002)
    [health] = [frame for frame in bench.decoder.feed(bench.transport.take()) if isinstance(frame, HealthFrame)]
    assert (health.stats["refused"], health.stats["units"], health.stats["batches"]) == (1, 2, 2)


class Texts:
    """Numbers of any length, as a text's are."""

    def __init__(self):
        self.config, self.ragged = {"name": "texts"}, {"x": 0}

    def signature(self, engine):
        return engine

    def before(self, inputs):
        return dict(inputs)

    after = before


@scene
async def test_calls_of_other_lengths_share_a_batch_and_keep_their_answers():
    bench = Bench(Gated(shape=(-1, -1)), transform=Texts())
    bench.say(call(0, question(0)))
    await entered(bench.engine)
    for number in range(1, 9):
        given = {"name": "x", "shape": [1, number], "datatype": "FP32", "data": [float(number)] * number}
        bench.say(call(number, json.dumps({"inputs": [given]}).encode()))
    bench.engine.go.set()
    await bench.until(9)
    assert [bench.answer(number) for number in range(9)] == [[0.0], *([float(number**2)] for number in range(1, 9))]
    assert bench.engine.batches == [1, 8]


@scene
async def test_a_broken_model_gives_its_calls_back_and_says_why():
    bench = Bench(Gated())
    bench.say(call(1, question(1)))
    await entered(bench.engine)
    bench.say(call(2, question(2)), call(3, b"half", more=True))
    bench.replica.broken(Internal("It is gone."))
    await bench.until(3)
    assert {bench.end(number).error.code for number in (1, 2, 3)} == {"unavailable"}
    assert "has failed" in bench.end(2).error.message
    bench.got.clear()
    bench.say(HealthFrame(1), call(4, question(4)))
    await bench.until(1)
    assert (bench.got[0].state, bench.got[0].error.message) == ("failed", "It is gone.")
    assert bench.end(4).error.code == "unavailable"
    bench.engine.go.set()
    await asyncio.sleep(0.05)
    bench.got += bench.decoder.feed(bench.transport.take())
    assert sum(isinstance(frame, EndFrame) for frame in bench.got) == 1  # nothing ends twice
    assert not bench.stopped  # the controller may still ask


@scene
async def test_a_batch_that_hangs_is_given_up_and_who_waits_behind_it_goes_elsewhere():
    bench, deadline = Bench(Gated()), time.time() + 0.6
    bench.say(call(1, question(1), deadline=deadline))
    await entered(bench.engine)
    bench.say(call(2, question(2), deadline=deadline), call(3, question(3), deadline=deadline), HealthFrame(1))
    assert bench.replica.state == "ready"
    await asyncio.sleep(0.35)
    bench.say(HealthFrame(2))
    await bench.until(3)
    assert time.time() < deadline
    assert [bench.end(number).error.code for number in (1, 2, 3)] == ["timed_out", "unavailable", "unavailable"]
    told = [frame for frame in bench.got if isinstance(frame, HealthFrame)][-1]
    assert (told.state, told.error.code) == ("failed", "timed_out")
    assert "computed nothing for 0." in told.error.message
    bench.engine.go.set()


@scene
async def test_a_graph_of_fixed_size_computes_one_call_at_a_time():
    bench = Bench(FakeEngine(card=card(shape=(1, 2))))
    bench.say(*(call(number, question(number)) for number in range(4)), call(9, question(1, 2)))
    await bench.until(5)
    assert bench.engine.batches == [1, 1, 1, 1]
    assert "has shape [2, 2]; expected [1, 2]" in bench.end(9).error.message


@scene
async def test_processor_time_is_shared_out():
    bench = Bench(FakeEngine(card=card()))
    bench.say(*(call(number, question(*[1] * 40)) for number in range(3)))
    await bench.until(3)
    shares = [bench.end(number).usage.cpu_us for number in range(3)]
    assert len(set(shares)) == 1
    assert 0 < shares[0] < 10_000_000


def test_inputs_with_different_rows():
    signature = Signature((TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))), ())

    class Two(FakeEngine):
        signature = None

    engine = Two(card=card())
    type(engine).signature = signature
    model = Model(engine, build(None), "t", "p")
    with pytest.raises(Invalid, match="have 1 and 2 rows"):
        model.prepare({"a": np.zeros(1), "b": np.zeros(2)})
    assert model.prepare({"a": np.zeros(2), "b": np.zeros(2)})[1] == 2


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(Invalid, match="no model"):
        load(Spec("t", "onnx", str(tmp_path), ""))
    card().save(tmp_path)
    with pytest.raises(NotFound, match="No engine 'nosuch'"):
        load(Spec("t", "nosuch", str(tmp_path), ""))


def test_a_stream_engine_is_refused_by_name(tmp_path, monkeypatch):
    card().save(tmp_path)
    monkeypatch.setitem(ENGINES._loaded, "speaks", FakeStreamEngine)
    with pytest.raises(Invalid, match="'speaks' is no batch engine"):
        load(Spec("t", "speaks", str(tmp_path), ""))


def test_the_socket_is_private_and_appears_whole(tmp_path):
    path = tmp_path / "deep" / "replica.sock"
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [entry.name for entry in path.parent.iterdir()] == ["replica.sock"]
    with listen(path):
        assert path.is_socket()


# Packed bodies


PACKED = {"content-encoding": "gzip", "body-limit": "100000"}


def error_codes(bench):
    return {frame.id: frame.error and frame.error.code for frame in bench.got if isinstance(frame, EndFrame)}


@scene
async def test_a_packed_call_is_the_call_it_was():
    bench = Bench()
    bodies = [gzip.compress(b" " * 30_000 + question(number)) for number in range(20)]
    bench.say(*(call(number, body, head=PACKED) for number, body in enumerate(bodies)))
    await bench.until(20)
    assert [bench.answer(number) for number in range(20)] == [[2.0 * number] for number in range(20)]
    assert bench.replica._room._taken == 0


@scene
async def test_a_bomb_costs_its_own_call():
    bench = Bench()
    bench.say(call(1, gzip.compress(b" " * 100_001), head=PACKED), call(2, b"\x1f\x8b", head=PACKED), call(3, question(1)))
    await bench.until(3)
    assert error_codes(bench) == {1: "too_large", 2: "invalid_request", 3: None}
    bench.say(call(4, gzip.compress(b"nonsense"), head=PACKED))
    await bench.until(4)
    assert error_codes(bench)[4] == "invalid_request"
    assert bench.replica._room._taken == 0


@scene
async def test_an_answer_is_packed_from_the_size_its_call_says():
    bench = Bench()
    body = question(*range(20_000))
    first = call(3, body[:PIECE], head={"gzip-from": "1024"}, more=True)
    rest = [BodyFrame(3, body[at : at + PIECE], at + PIECE < len(body)) for at in range(PIECE, len(body), PIECE)]
    bench.say(call(1, question(1), head={"gzip-from": "1024"}), call(2, question(1), head={"gzip-from": "0"}), first, *rest)
    await bench.until(3)
    parts = bench.pieces()
    told = {"content-type": "application/json", "content-encoding": "gzip", "vary": "accept-encoding"}
    assert {part.id: part.head for part in parts if part.head} == {2: told, 3: told}
    bodies = {number: b"".join(part.data for part in parts if part.id == number) for number in (1, 2, 3)}
    assert gzip.decompress(bodies[2]) == bodies[1]
    assert json.loads(gzip.decompress(bodies[3]))["outputs"][0]["shape"] == [20_000, 1]
    assert bench.end(3).usage.units == 20_000


@scene
async def test_what_an_encoding_took_is_told_once():
    bench = Bench()
    bench.say(call(1, question(1)))
    await bench.until(1)
    assert bench.replica._owed > 0
    bench.say(call(2, question(2)[:5], more=True), CancelFrame(2))  # it is charged nothing, and leaves nothing to be charged
    await bench.until(2)
    assert bench.replica._owed == 0


def test_what_was_measured_before_is_told_and_not_measured_again():
    engine = FakeEngine(card=card())
    model = Model(engine, build(None), "tabular-regression", "modelyard_fake")
    model.measure({"rows": 8, "ns_a_row": 2500})
    assert (model.metadata["batch"], engine.batches) == ({"rows": 8, "us_a_row": 2.5}, [])
    [(rows, seconds)] = model.times
    assert (rows, seconds) == (8, pytest.approx(20e-6))
