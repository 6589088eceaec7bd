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

_LOOK = 0.01  # seconds between two looks at what gateways have taken
_IDLE, _MOST = 1.0, 60.0  # seconds that are waited for a gateway that takes nothing, and in all


class Peer:
    """A connection from a gateway, and its calls that are not ended."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, received: Callable[[Peer, Frame], None], lost: Callable[[Peer], None]
    ) -> None:
        self.calls: dict[int, Pending] = {}
        self.channel = Channel(loop, lambda frame: received(self, frame), lambda _: lost(self), ANSWERS)


async def part(peers: set[Peer]) -> None:
    """Close every connection once its gateway has taken the last answers; one that takes no more of them is not waited for.
    `peers` are those that are not lost."""
    for peer in list(peers):
        peer.channel.finish()
    clock = asyncio.get_running_loop().time
    end, idle, left = clock() + _MOST, clock() + _IDLE, _untaken(peers)
    while peers and clock() < min(end, idle):
        await asyncio.sleep(_LOOK)
        before, left = left, _untaken(peers)
        if left < before:
            idle = clock() + _IDLE


def _untaken(peers: set[Peer]) -> int:
    return sum(peer.channel.backlog for peer in peers)


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
