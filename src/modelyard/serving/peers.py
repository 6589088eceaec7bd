"""What a replica knows of its gateways: each one's connection, and its calls from their CALL to their END."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from modelyard.serving.batching import Waiting
from modelyard.serving.channel import ANSWERS, Channel
from modelyard.serving.doors import Question
from modelyard.serving.frames import CallFrame, Frame
from modelyard.serving.traces import is_sampled


class Peer:
    """A connection from a gateway, and its calls that are not ended."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, received: Callable[[Peer, Frame], None], lost: Callable[[Peer], None]
    ) -> None:
        self.calls: dict[int, Pending] = {}
        self.channel = Channel(loop, lambda frame: received(self, frame), lambda _: lost(self), ANSWERS)


class Pending:
    """A call in this replica, from its CALL to its END. `since` is when it came, if it is sampled, else 0; `ran` then when its
    batch began and when that was computed."""

    __slots__ = ("cancelled", "frame", "peer", "pieces", "question", "queued", "ran", "since", "unpacked", "waiting", "whole")

    def __init__(self, peer: Peer, frame: CallFrame) -> None:
        self.peer, self.frame = peer, frame
        self.pieces = [frame.data]
        self.question: Question | None = None
        self.waiting: Waiting | None = None
        self.whole = False
        self.cancelled = False
        self.unpacked = 0
        self.since = time.perf_counter() if is_sampled(frame.head) else 0.0
        self.queued = 0.0
        self.ran: tuple[float, float] | None = None

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        if self.waiting is not None:
            self.waiting.cancelled = True

    @property
    def times(self) -> tuple[float, float, float, float] | None:
        """What the END of a sampled call tells, now that its answer is encoded."""
        if self.ran is None:
            return None
        began, computed = self.ran
        return self.queued - self.since, began - self.since, computed - self.since, time.perf_counter() - self.since
