"""A channel joins the frames of a turn, cuts large bodies, lets small calls pass them, and stops when the peer does."""

from __future__ import annotations

import pytest
from serving_fakes import FakeLoop, FakeTransport, call, frames

from modelyard.errors import Invalid
from modelyard.serving.channel import Channel
from modelyard.serving.frames import PIECE, BodyFrame, CallFrame, CancelFrame, EndFrame, PartFrame, Usage


class End:
    def __init__(self, limit=None):
        self.loop, self.got, self.closed = FakeLoop(), [], []
        self.channel = Channel(self.loop, self.got.append, self.closed.append)
        self.transport = FakeTransport(self.channel, limit)

    def connect(self):
        self.channel.connection_made(self.transport)
        return self


def body_of(sent, number):
    pieces = [frame.data for frame in sent if frame.id == number and isinstance(frame, CallFrame | BodyFrame)]
    more = [frame.more for frame in sent if frame.id == number and isinstance(frame, CallFrame | BodyFrame)]
    assert more == [True] * (len(more) - 1) + [False]
    return b"".join(pieces)


def test_the_frames_of_a_turn_leave_in_one_write():
    end = End().connect()
    for number in range(10):
        end.channel.send_whole(call(number, b"body"))
    assert end.transport.writes == []
    end.loop.turn()
    assert len(end.transport.writes) == 1
    assert [frame.id for frame in frames(end.transport.written)] == list(range(10))


def test_frames_wait_for_the_connection():
    end = End()
    end.channel.send_whole(call(1))
    end.loop.settle()
    end.connect()
    assert [frame.id for frame in frames(end.transport.written)] == [1]


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE, 1_000_003])
def test_a_body_of_any_size_arrives_whole_and_leaves_the_frame_as_it_was(size):
    end = End().connect()
    whole = call(7, bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    end.channel.send_whole(whole)
    end.loop.settle()
    assert body_of(frames(end.transport.written), 7) == whole.data
    assert len(whole.data) == size
    assert whole.more is False


def test_a_small_call_passes_large_ones_and_large_ones_take_turns():
    end = End().connect()
    end.channel.send_whole(call(1, b"a" * 2_000_000))
    end.channel.send_whole(call(2, b"b" * 2_000_000))
    end.loop.turn()
    end.channel.send_whole(call(3, b"small"))
    end.loop.settle()
    order = [frame.id for frame in frames(end.transport.written)]
    assert order.index(3) < 15
    large = [number for number in order if number != 3]
    assert all(left != right for left, right in zip(large[:-1:2], large[1::2], strict=False))
    sent = frames(end.transport.written)
    assert body_of(sent, 1) == b"a" * 2_000_000
    assert body_of(sent, 2) == b"b" * 2_000_000


def test_the_end_of_a_call_follows_its_last_piece():
    end = End().connect()
    end.channel.send_whole(PartFrame(5, 0, 3, b"z" * (4 * PIECE), {"a": "b"}))
    end.channel.send(EndFrame(5, Usage(3, 1), 0))
    end.loop.settle()
    sent = frames(end.transport.written)
    assert isinstance(sent[-1], EndFrame)
    assert b"".join(frame.data for frame in sent[:-1]) == b"z" * (4 * PIECE)
    assert [frame.units for frame in sent[:-1]] == [3, 0, 0, 0]
    assert sent[0].head == {"a": "b"}


def test_a_peer_that_does_not_read_stops_large_bodies():
    end = End(limit=1).connect()
    end.channel.send_whole(call(1, b"a" * 5_000_000))
    for _ in range(100):
        end.loop.turn()
    first = len(end.transport.written)
    assert first < 500_000
    assert end.channel.backlog > 4_000_000
    while end.transport.waiting:
        end.transport.drained()
        end.loop.settle()
    assert body_of(frames(end.transport.written), 1) == b"a" * 5_000_000
    assert end.channel.backlog == 0


def test_a_dropped_body_stops_and_what_comes_after_it_does_not():
    end = End(limit=1).connect()
    end.channel.send_whole(call(1, b"a" * 5_000_000))
    end.loop.turn()
    end.channel.drop(1)
    end.channel.send(CancelFrame(1))
    while end.transport.waiting:
        end.transport.drained()
        end.loop.settle()
    sent = frames(end.transport.written)
    assert isinstance(sent[-1], CancelFrame)
    assert len(end.transport.written) < 1_000_000


def test_of_an_answer_that_was_given_up_the_end_still_comes():
    end = End(limit=1).connect()
    end.channel.send_whole(PartFrame(1, 0, 1, b"a" * 5_000_000))
    end.channel.send(EndFrame(1, Usage(1, 2), 0))
    end.loop.turn()
    end.channel.drop(1)
    while end.transport.waiting:
        end.transport.drained()
        end.loop.settle()
    assert isinstance(frames(end.transport.written)[-1], EndFrame)
    assert len(end.transport.written) < 1_000_000


def test_frames_are_received_in_order_and_garbage_ends_the_connection():
    sender, end = End().connect(), End().connect()
    sender.channel.send_whole(call(1))
    sender.channel.send(CancelFrame(1))
    sender.loop.turn()
    end.channel.data_received(bytes(sender.transport.written))
    assert [type(frame) for frame in end.got] == [CallFrame, CancelFrame]
    end.channel.data_received(b"\xff" * 10)
    assert end.transport.aborted
    end.channel.connection_lost(None)
    assert isinstance(end.closed[0], Invalid)


def test_closing_writes_what_was_sent():
    end = End().connect()
    end.channel.send(CancelFrame(1))
    end.channel.close()
    assert end.transport.closed
    assert len(frames(end.transport.written)) == 1


def test_a_channel_that_finishes_writes_large_bodies_to_the_end_first():
    end = End(limit=1).connect()
    end.channel.send_whole(PartFrame(1, 0, 1, b"a" * 2_000_000))
    end.channel.send(EndFrame(1, Usage(1, 2), 0))
    end.channel.finish()
    end.loop.settle()
    assert not end.transport.closed
    while end.transport.waiting:
        end.transport.drained()
        end.loop.settle()
    assert end.transport.closed
    *parts, last = frames(end.transport.written)
    assert b"".join(part.data for part in parts) == b"a" * 2_000_000
    assert isinstance(last, EndFrame)


def test_a_channel_that_finishes_has_nothing_more_to_write():
    end = End().connect()
    end.channel.finish()
    assert end.transport.closed


def test_closing_waits_for_no_peer():
    end = End(limit=1).connect()
    end.channel.send_whole(call(1, b"a" * 2_000_000))
    end.channel.close()
    assert end.transport.closed


def test_nothing_is_written_to_a_peer_that_died_in_the_same_turn():
    end = End().connect()
    end.channel.send_whole(call(1, b"x" * (3 * PIECE)))
    before = list(end.transport.writes)
    end.transport.abort()
    end.channel.send_whole(call(2, b"x" * (PIECE // 2)))
    end.loop.settle()
    end.channel.connection_lost(None)
    end.channel.send(CancelFrame(1))
    end.loop.settle()
    assert end.transport.writes == before
    assert end.closed == [None]


def test_frames_that_fill_a_write_leave_before_the_turn_is_over():
    end = End().connect()
    for number in range(100):
        end.channel.send(call(number, b"x" * 200))
    early = len(end.transport.writes)
    assert early >= 2
    end.loop.settle()
    assert len(end.transport.writes) == early + 1
    assert [frame.id for frame in frames(end.transport.written)] == list(range(100))
