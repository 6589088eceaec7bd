"""Batching, decided: which of the calls that wait are computed together, how they are joined, and how the answers come apart.

`next_batch` decides, `compute` joins, runs and splits; `batcher` is the loop around them. Nothing waits for company: the next
batch is of whatever came in while the last one ran. It knows arrays and rows, no engine, door or frame.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from modelyard.errors import CallerError, Internal, ModelyardError
from modelyard.serving.arrays import Flat, merged
from modelyard.tensors import DATATYPES, Array

_NAME, _LENGTH = itemgetter(0), attrgetter("length")
TYPICAL = 64  # the length at which the rows of a batch are counted where calls differ in length
# What a batch costs for being one, as a part of a full one: the best size is where that is lost in the noise (`best`).
SPARE = 24
_SHORT = 64  # elements of a row: longer ones cost as much one by one
Forward = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Answer = Mapping[str, Array] | ModelyardError


@dataclass(frozen=True, slots=True)
class Limits:
    """`rows` in one batch; `merge` False where the engine's batch dim is fixed: every call runs alone. `length` is what a row
    counts at: 1, or `TYPICAL` where calls differ in length; then fewer long rows fill a batch, and more short ones."""

    rows: float = 128
    merge: bool = True
    length: int = 1

    @property
    def most(self) -> float:
        """Work in one batch: rows, times their length where they differ in it."""
        return self.rows * self.length


@dataclass(slots=True, eq=False)
class Waiting:
    """A call ready to be computed: its arrays, all of `rows` rows, and who waits (`call`, opaque here). `kind` is equal for
    calls that may share a batch. Of the inputs in `ragged` dim 1 may differ from call to call; they are padded with its value.
    `due`: the turn from which on younger calls of a better length do not go first; `since`: when it began to wait."""

    arrays: Mapping[str, Array]
    rows: int
    deadline: float
    call: Any
    ragged: Mapping[str, Any] | None = None
    cancelled: bool = False
    due: int = 0
    since: float = 0.0
    length: int = field(init=False, default=1)
    work: int = field(init=False)
    kind: object = field(init=False)

    def __post_init__(self) -> None:
        ragged, flat = self.ragged, self.arrays
        if type(flat) is Flat and not ragged:
            self.work = self.rows
            self.kind = (flat.spec.name, DATATYPES[flat.spec.datatype], flat.shape[1:])
            return
        if ragged:
            self.ragged = ragged = {n: pad for n, pad in ragged.items() if n in self.arrays and self.arrays[n].ndim > 1}
            self.length = max((self.arrays[name].shape[1] for name in ragged), default=1)
            kinds = [(n, a.dtype, (-1, *a.shape[2:]) if n in ragged else a.shape[1:]) for n, a in self.arrays.items()]
        else:
            kinds = [(name, array.dtype, array.shape[1:]) for name, array in self.arrays.items()]
        self.work = self.rows * self.length
        self.kind = kinds[0] if len(kinds) == 1 else sorted(kinds, key=_NAME)
        for array in self.arrays.values():
            if not array.ndim:
                self.kind = object()  # without a batch dim there is nothing to join


def patience(ahead: float, most: float) -> int:
    """For how many batches a call may see others go first that are nearer in length: twice those that its turn in order of
    arrival would take, and a few."""
    return 2 * math.ceil(ahead / most) + 4


def next_batch(
    waiting: Sequence[Waiting], limits: Limits, now: float, turn: int = 0
) -> tuple[list[Waiting], list[Waiting], list[Waiting]]:
    """(to compute now, to wait on, given up), each in order of arrival. The eldest call decides what kind the batch is, and is
    in it. Later calls of that kind join in order while there is room; of those that differ in length, the nearest. A call
    larger than a batch runs alone."""
    given_up = [item for item in waiting if item.cancelled or item.deadline <= now]
    alive = [item for item in waiting if not item.cancelled and item.deadline > now] if given_up else waiting
    if not alive:
        return [], [], given_up
    if not limits.merge:
        return [alive[0]], list(alive[1:]), given_up
    if alive[0].ragged:
        taken = set(map(id, _near(alive, limits.most, turn)))
        return [i for i in alive if id(i) in taken], [i for i in alive if id(i) not in taken], given_up
    batch, rest = _in_order(alive, limits.rows)
    return batch, rest, given_up


def _in_order(alive: Sequence[Waiting], most: float) -> tuple[list[Waiting], list[Waiting]]:
    kind, rows = alive[0].kind, alive[0].rows
    batch, rest = [alive[0]], []
    room = True
    for item in alive[1:]:
        if room and item.kind == kind:
            if rows + item.rows <= most:
                batch.append(item)
                rows += item.rows
                continue
            room = False  # a smaller, later call does not overtake this one
        rest.append(item)
    return batch, rest


def _near(alive: Sequence[Waiting], most: float, turn: int) -> list[Waiting]:
    """The eldest call with those whose turn has come, whatever their length, and then the calls for which being padded costs
    less than a batch of their own would."""
    eldest = alive[0]
    same = [item for item in alive[1:] if item.kind == eldest.kind]
    batch, rows, longest = [eldest], eldest.rows, eldest.length
    for item in (item for item in same if item.due <= turn):
        if (rows + item.rows) * max(longest, item.length) > most:
            return batch
        batch.append(item)
        rows, longest = rows + item.rows, max(longest, item.length)
    others = sorted((item for item in same if item.due > turn), key=_LENGTH)
    return batch + _company(others, rows, longest, most)


def _company(others: Sequence[Waiting], rows: int, longest: int, most: float) -> list[Waiting]:
    """Of calls in order of length, those to join a batch of `rows` rows padded to `longest`: for each length it could be
    padded to instead, the nearest below; then the choice that spares most. Nobody is padded by more than the spare."""
    spare = most / SPARE
    first = bisect_right(others, longest, key=_LENGTH)
    last = bisect_right(others, longest + spare / rows, key=_LENGTH)
    chosen: list[Waiting] = []
    best = 0.0
    for top in range(first, last + 1):  # all before `top` may join; the last of them is the longest
        length = max(longest, others[top - 1].length) if top else longest
        if rows * length > most:
            break
        saved, filled, joining = rows * float(longest - length), rows, []
        for item in reversed(others[bisect_left(others, length - spare, key=_LENGTH) : top]):
            waste = item.rows * (length - item.length)
            if waste <= spare and (filled + item.rows) * length <= most:
                joining.append(item)
                saved, filled = saved + spare - waste, filled + item.rows
        if saved > best:
            chosen, best = joining, saved
    return chosen


def compute(forward: Forward, batch: Sequence[Waiting], open_outputs: frozenset[str] = frozenset()) -> tuple[list[Answer], int]:
    """One answer a call, and for how many of them the model failed: it raised, gave another shape, or NaN where the input was
    finite (which is answered as it is). Where a batch of several fails, each call is tried alone, so that one bad call fails
    by itself. Outputs in `open_outputs` are cut to a call's own length where it was padded."""
    try:
        outputs = forward(join(batch))
        answers = split(outputs, batch, open_outputs)
    except ModelyardError as error:
        failure = error
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - a model's code may raise anything, and exit
        failure = Internal(f"The model failed: {type(error).__name__}: {_first_line(error)}")
    else:
        return answers, sum(map(is_garbage, batch, answers)) if _has_nan(outputs) else 0
    if len(batch) == 1:
        return [failure], int(not isinstance(failure, CallerError))
    alone = [compute(forward, [item], open_outputs) for item in batch]
    return [answer for [answer], _ in alone], sum(failed for _, failed in alone)


def join(batch: Sequence[Waiting]) -> dict[str, Array]:
    """The arrays of a batch, row after row, padded to the longest. They may be written to: views of a request's bytes are
    copied."""
    flat = [item.arrays for item in batch if type(item.arrays) is Flat]
    if len(flat) == len(batch) and not batch[0].ragged:
        return merged(flat)
    if len(batch) == 1:
        arrays = batch[0].arrays
        return {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}
    ragged = batch[0].ragged or {}
    joined = {}
    for name in batch[0].arrays:
        parts = [item.arrays[name] for item in batch]
        joined[name] = _padded(parts, ragged[name]) if name in ragged else np.concatenate(parts)
    return joined


def _padded(parts: Sequence[Array], value: Any) -> Array:
    longest = max(part.shape[1] for part in parts)
    whole = np.full((sum(map(len, parts)), longest, *parts[0].shape[2:]), value, parts[0].dtype)
    at = 0
    for part in parts:
        whole[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return whole


class Whole:
    """What a batch was answered; short rows as lists, once for all calls of it that ask."""

    __slots__ = ("_lists", "arrays")

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays
        self._lists: dict[str, list[list[Any]]] = {}

    def elements(self, name: str, at: int, rows: int) -> list[Any]:
        """Some rows of an output, flat and row-major."""
        lists = self._lists.get(name)
        if lists is None:
            array = self.arrays[name]
            if array.size > _SHORT * len(array):
                return list(array[at : at + rows].ravel().tolist())
            lists = self._lists[name] = array.reshape(len(array), array.size // len(array)).tolist()
        return lists[at] if rows == 1 else [element for row in lists[at : at + rows] for element in row]


class Rows(Mapping[str, Array]):
    """The rows of a batch's answer that are one call's."""

    __slots__ = ("_at", "_rows", "_whole")

    def __init__(self, whole: Whole, at: int, rows: int) -> None:
        self._whole, self._at, self._rows = whole, at, rows

    def __getitem__(self, name: str) -> Array:
        return self._whole.arrays[name][self._at : self._at + self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole.arrays)

    def __len__(self) -> int:
        return len(self._whole.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self._rows, *self._whole.arrays[name].shape[1:])

    def elements(self, name: str) -> list[Any]:
        """An output, flat and row-major."""
        return self._whole.elements(name, self._at, self._rows)


def split(outputs: Mapping[str, Array], batch: Sequence[Waiting], open_outputs: frozenset[str] = frozenset()) -> list[Answer]:
    """Each call's rows of the outputs. Raises `Internal` where an output has not as many rows as the batch."""
    total = sum(item.rows for item in batch)
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.ndim == 0 or array.shape[0] != total:
            shape = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            raise Internal(f"The model answered '{name}' with {shape} for {total} rows; expected {total} rows.")
    answers: list[Answer] = []
    whole, at = Whole(outputs), 0
    for item in batch:
        answers.append(Rows(whole, at, item.rows))
        at += item.rows
    longest = max(item.length for item in batch) if open_outputs else 0
    cut = [name for name in open_outputs & outputs.keys() if outputs[name].shape[1:2] == (longest,)]
    if not cut:
        return answers
    return [_cut(answer, cut, item.length) for item, answer in zip(batch, answers, strict=True)]


def _cut(answer: Answer, names: Sequence[str], length: int) -> Answer:
    assert isinstance(answer, Rows)
    return {name: array[:, :length] if name in names else array for name, array in answer.items()}


def _has_nan(outputs: Mapping[str, Array]) -> bool:
    """By the product of a floating array with itself, which reads it once and allocates nothing: it is NaN where an element
    is."""
    for array in outputs.values():
        if array.dtype.kind == "f":
            square = np.vdot(array, array)
            if square != square:
                return True
    return False


def is_garbage(item: Waiting, answer: Answer) -> bool:
    """Whether an answer holds NaN though the call's arrays are finite."""
    if isinstance(answer, ModelyardError) or not _has_nan(answer):
        return False
    return all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in item.arrays.values())


def _first_line(error: BaseException) -> str:
    """What an error says, as text that can be sent; what a model's own class says of itself may fail too."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - a model's code may raise anything
        return ""
    return said.partition("\n")[0][:300].encode("utf-8", "replace").decode()
