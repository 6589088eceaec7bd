"""What a replica knows of its gateways: each one's connection, and its calls from their CALL to their END."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelyard.serving.batching import Waiting
from modelyard.serving.channel import ANSWERS, Channel
from modelyard.serving.doors import Question
from modelyard.serving.frames import CallFrame, Frame


class Peer:
    """A connection from a gateway, and its calls that are not ended."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, received: Callable[[Peer, Frame], None], lost: Callable[[Peer], None]
    ) -> None:
        self.calls: dict[int, Pending] = {}
        self.channel = Channel(loop, lambda frame: received(self, frame), lambda _: lost(self), ANSWERS)


class Pending:
    """A call in this replica, from its CALL to its END."""

    __slots__ = ("cancelled", "frame", "peer", "pieces", "question", "unpacked", "waiting", "whole")

    def __init__(self, peer: Peer, frame: CallFrame) -> None:
        self.peer, self.frame = peer, frame
        self.pieces = [frame.data]
        self.question: Question | None = None
        self.waiting: Waiting | None = None
        self.whole = False
        self.cancelled = False
        self.unpacked = 0

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        if self.waiting is not None:
            self.waiting.cancelled = True
