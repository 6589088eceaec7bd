"""Whether a model still works: told apart from callers who send what no model could answer.

A replica whose model failed so many calls in a row, none good between, tries it on something it answered before. Where even
that fails, the replica is broken and says so; where it does not, the calls were at fault, and the count begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.errors import CallerError, Internal, ModelyardError
from modelyard.serving.batching import Answer, Forward, Waiting, compute, is_garbage
from modelyard.tensors import Array

FAILURES = 20
_LARGEST = 1 << 20  # bytes of a call that is kept to try the model on


class Conduct:
    """Used where the model is: by whoever computes, one batch at a time. `known` is one row that the model answers well;
    without it the first call that was is kept."""

    def __init__(self, forward: Forward, known: Mapping[str, Array] | None = None) -> None:
        self._forward = forward
        self._known = None if known is None else kept(known)
        self._failed = 0

    @property
    def calm(self) -> bool:
        """Whether a batch without a failure is no news."""
        return self._failed == 0 and self._known is not None

    def judge(self, batch: Sequence[Waiting], answers: Sequence[Answer], failed: int) -> ModelyardError | None:
        """Why the model is broken, once it is; `failed` calls of the batch failed by its fault."""
        good = len(answers) - failed - sum(isinstance(answer, CallerError) for answer in answers)
        if good:
            self._failed = 0
            self._known = self._known or _first_good(batch, answers)
            return None
        self._failed += failed
        if self._failed < FAILURES:
            return None
        self._failed = 0
        if self._known is not None and works(self._forward, self._known):
            return None
        last = next((answer for answer in reversed(answers) if isinstance(answer, ModelyardError)), None)
        why = last.message if last is not None else "It answers NaN where its input is finite."
        return Internal(f"The model failed {FAILURES} calls in a row, and what it answered before. {why}")


def _first_good(batch: Sequence[Waiting], answers: Sequence[Answer]) -> Waiting | None:
    for item, answer in zip(batch, answers, strict=True):
        small = sum(array.nbytes for array in item.arrays.values()) <= _LARGEST
        if small and not isinstance(answer, ModelyardError) and not is_garbage(item, answer):
            return kept(item.arrays, item.rows)
    return None


def works(forward: Forward, question: Waiting) -> bool:
    """Whether a model answers this, and with numbers."""
    [answer], failed = compute(forward, [question])
    return not failed and not isinstance(answer, ModelyardError)


def kept(arrays: Mapping[str, Array], rows: int = 1) -> Waiting:
    """A question as a copy that no forward can write to."""
    copies = {name: array.copy() for name, array in arrays.items()}
    for copy in copies.values():
        copy.flags.writeable = False
    return Waiting(copies, rows, 0.0, None)
