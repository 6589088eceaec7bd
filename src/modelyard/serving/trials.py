"""A release on trial, seen from a gateway: which calls it is given, and what is compared with the stable release.

`gateway` asks `Comparison` for turns and tells it outcomes; for a shadow it sends `Mirror`s, copies of calls whose answers
nobody waits for. `verdict` says what the numbers mean, and the controller acts on them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import msgspec

from modelyard.errors import Overloaded
from modelyard.serving.copies import Compared
from modelyard.serving.frames import Fault, Head, Usage
from modelyard.serving.router import Underway
from modelyard.serving.types import Seen, Trial, TrialKind
from modelyard.serving.verdict import Pairing

COPIES = 64  # copies of calls that may be under way for one trial; others are not made
LARGEST = 1 << 20  # bytes of a call and its answer that are still copied
_SAID = 1 << 10  # bytes that a comparison is told in: two numbers


_COMPARED = msgspec.json.Decoder(Compared)


class Comparison:
    """One trial's numbers in this gateway. The shares are exact: of any hundred calls in a row `share` are the trial's."""

    def __init__(self, trial: Trial, source: str) -> None:
        self.trial = trial
        self._source, self._pairing = source, Pairing(trial.policy)
        self._due = self._calls = self._told = self.copies = 0

    @property
    def is_shadow(self) -> bool:
        return self.trial.kind == TrialKind.shadow

    def turn(self) -> bool:
        """Whether the next call is the trial's."""
        self._due += self.trial.share
        if self._due < 100:
            return False
        self._due -= 100
        return True

    def stable(self, failed: bool, seconds: float) -> None:
        """The stable release answered."""
        self._pairing.stable(failed, seconds)

    def tried(self, failed: bool, seconds: float) -> None:
        """The trial answered."""
        self._calls += 1
        self._pairing.trial(failed, seconds)

    def compared(self, rows: int, disagreeing: int) -> None:
        """Both answered one call."""
        self._pairing.agreed(rows, disagreeing)

    def news(self) -> Seen | None:
        """What was seen so far, where that is more than was last told."""
        calls = self._calls
        if calls == self._told:
            return None
        self._told = calls
        trial = self.trial
        return Seen(trial.id, trial.generation, trial.share, self._source, calls, self._pairing.evidence)


class Mirror(Underway):
    """A copy of a call, sent to the shadow with the answer that its caller was given. `settle(usage)` books what it used."""

    def __init__(self, comparison: Comparison, settle: Callable[[Usage], None]) -> None:
        self._comparison, self._settle = comparison, settle
        self._began = time.monotonic()
        self._said = b""
        self._late = False
        comparison.copies += 1

    def part(self, data: bytes, head: Head) -> None:
        if len(self._said) <= _SAID:  # what is longer is no comparison
            self._said = self._said + data

    def ended(self, usage: Usage, error: Fault | None) -> None:
        self._comparison.copies -= 1
        self._settle(usage)
        if not self._late:
            self._tell(error)

    def late(self, error: Fault) -> None:
        self._late = True
        self._tell(error)

    def restart(self) -> bool:
        return False

    def _tell(self, error: Fault | None) -> None:
        if error is not None and error.code == Overloaded.code:
            return  # it was asked for more than it can do, which says nothing of the release
        self._comparison.tried(error is not None, time.monotonic() - self._began)
        if error is None:
            with contextlib.suppress(msgspec.MsgspecError):  # a replica runs users' code: what it says may be anything
                said = _COMPARED.decode(self._said)
                self._comparison.compared(said.rows, min(max(said.disagreeing, 0), said.rows))
