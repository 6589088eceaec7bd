"""What gangs said on a node and control has not yet heard of: nothing is lost where an answer is, and it is bounded.

`host` fills it, and empties it to whoever holds the node.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator

from modelyard.jobs.types import Event

# Bytes that wait at most before gangs are listened to no more, and that are handed over at a time.
_MOST, _PORTION = 8 << 20, 1 << 20


class Outbox:
    """Numbered lines, each a JSON object {seq, token, type, body}; those before the one asked for were heard."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, bytes]] = deque()
        self._next, self._bytes = 1, 0
        self._news = threading.Condition()

    def put(self, token: str, event: Event) -> None:
        with self._news:
            said = {"seq": self._next, "token": token, "type": event.type, "body": dict(event.body)}
            line = json.dumps(said, separators=(",", ":")).encode()
            self._lines.append((self._next, line))
            self._next += 1
            self._bytes += len(line)
            self._news.notify_all()

    def after(self, heard: int, patience: float) -> bytes:
        """The lines that follow number `heard`; none where nothing came for `patience` seconds."""
        with self._news:
            while self._lines and self._lines[0][0] <= heard:
                self._bytes -= len(self._lines.popleft()[1])
            self._news.notify_all()
            self._news.wait_for(lambda: self._lines, patience)
            return b"\n".join(self._portion())

    def failures(self) -> dict[str, dict[str, str]]:
        """By token what went wrong with gangs that ended, where that was not yet heard."""
        with self._news:
            said = [json.loads(line) for _, line in self._lines]
        ends = {line["token"]: line["body"]["error"] for line in said if line["type"] == "ended"}
        return {token: error for token, error in ends.items() if error is not None}

    def wait_for_room(self, patience: float) -> bool:
        """Whether gangs may say more, now or within `patience` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self._bytes < _MOST, patience)

    def _portion(self) -> Iterator[bytes]:
        size = 0
        for _, line in self._lines:
            if size and size + len(line) > _PORTION:
                return
            size += len(line)
            yield line
