"""What a converter is, and the proof that what it made is the same model.

A converter writes another format of a model version; `verify` runs both through the engines that will serve them and compares.
Called by the import of models and by optimisation. It knows no dataset: samples are arrays by the engine's input names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modelyard.engines.base import BatchEngine, ModelCard
from modelyard.errors import Invalid
from modelyard.plugins import Registry
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec, datatype_of

# The error allowed of an output of each datatype; whole numbers, truth values and text must be the same.
TOLERANCES: Mapping[str, float] = {"FP16": 1e-2, "FP32": 1e-4, "FP64": 1e-4}
Tolerance = float | Mapping[str, float]
BATCHES = (1, 2, 7)
_CHUNK = 64
_ROWS = 7  # to try a model with: odd, and none of the sizes below, so that a batch is not taken for another dim
_SIZES = (8, 32, 64, 224, 1)  # tried in turn for dims past the batch that are open
_ALIKE = 2e-2  # of an output's largest number: how far a row's answer may follow from where a batch was cut
_LEAST = 1e-2  # what errors are relative to at least: an answer near 0 is the difference of larger numbers
WORST = "worst-input.npz"


class Converter(Protocol):
    """Writes a model version in another format."""

    def convert(self, folder: Path, card: ModelCard, out: Path, samples: Mapping[str, Array]) -> ModelCard:
        """From the version in `folder` to files and `model.json` in `out`; returns that card. `samples`: rows of each engine
        input, of the shapes to expect. Raises `Invalid` where the model cannot be expressed in the format."""
        ...


CONVERTERS: Registry[Converter] = Registry(
    "converter",
    {
        "gguf": "modelyard.conversion.gguf:CONVERTER",
        "litert": "modelyard.conversion.litert:CONVERTER",
        "onnx": "modelyard.conversion.onnx:CONVERTER",
        "openvino": "modelyard.conversion.openvino:CONVERTER",
        "pt2": "modelyard.conversion.pt2:CONVERTER",
    },
)


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a candidate's outputs are from the reference's. `max_rel` counts relative to |reference|, at least the output's
    largest number or 1, whichever is less, and is what `tolerance`, of that output's datatype, bounds (None: nothing is).
    `worst` is the row of the samples and `output` the tensor where it is found: the greatest, or one past its bound if any is.
    `batches` are the sizes run."""

    rows: int
    batches: tuple[int, ...]
    max_abs: float
    max_rel: float
    worst: int
    output: str
    tolerance: float | None

    @property
    def ok(self) -> bool:
        return self.tolerance is None or self.max_rel <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "batches": list(self.batches), "ok": self.ok}


def compare(
    reference: BatchEngine,
    candidate: BatchEngine,
    samples: Mapping[str, Array],
    tolerance: Tolerance | None = TOLERANCES,
) -> Verification:
    """Run every row in both, in batches of 1, 2, 7 and more (of the fixed size where there is one). Raises `Invalid` where
    names, datatypes or shapes of outputs differ, rows are not kept, or an output of the reference has no finite number, so that
    nothing is compared. `tolerance` is one for all outputs, or by datatype, 0
    for one it does not name."""
    rows = count(samples)
    found: tuple[bool, float, float, int, str, float | None] = (False, -1.0, 0.0, 0, "", None)
    sizes: list[int] = []
    largest: dict[str, float] = {}
    finite: set[str] = set()
    for start, stop in _slices(candidate.signature, rows):
        sizes.append(stop - start)
        batch = {name: array[start:stop] for name, array in samples.items()}
        expected, given = reference.forward(batch), candidate.forward(batch)
        for name, wanted in expected.items():
            _same_form(name, wanted, given, stop - start)
            finite |= {name} if _finite(wanted).any() else set()
            largest[name] = max(largest.get(name, 0.0), _largest(wanted))
            absolute, relative = _errors(wanted, given[name], _floor(wanted, largest[name]))
            row, allowed = int(relative.argmax()), _allowed(wanted, tolerance)
            past = allowed is not None and not relative[row] <= allowed
            figures = (past, float(relative[row]), float(absolute.max()), start + row, name, allowed)
            found = max(found, figures, key=lambda f: f[:2])
    if blank := sorted(largest.keys() - finite):
        raise Invalid(f"{said_of(blank)} no finite number in any of {rows} rows, so that nothing shows the two to be the same.")
    _, relative_error, absolute_error, worst, output, bound = found
    return Verification(rows, tuple(sorted(set(sizes))), absolute_error, relative_error, worst, output, bound)


def verify(
    reference: BatchEngine,
    candidate: BatchEngine,
    samples: Mapping[str, Array],
    tolerance: Tolerance = TOLERANCES,
    *,
    keep: Path,
) -> Verification:
    """As `compare`; raises `Invalid` past the tolerance, after writing the worst row into the folder `keep`."""
    found = compare(reference, candidate, samples, tolerance)
    if not found.ok:
        keep_worst(samples, found.worst, keep)
        raise Invalid(
            f"The converted model is not the same: output '{found.output}' differs by {found.max_abs:.3g} at row {found.worst} "
            f"(relative {found.max_rel:.3g}, allowed {found.tolerance:g}). That input is kept in {WORST}."
        )
    return found


def keep_worst(samples: Mapping[str, Array], row: int, keep: Path) -> None:
    """Write a row of the samples into the folder `keep`, as `worst-input.npz`."""
    np.savez(keep / WORST, **{name: array[row : row + 1] for name, array in samples.items()})  # type: ignore[arg-type]


def count(samples: Mapping[str, Array]) -> int:
    """Rows of a batch. Raises `Invalid` where there are none or inputs differ."""
    sizes = {len(array) for array in samples.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise Invalid(f"Samples need equally many rows of each input, at least one; there are {sorted(sizes)}.")
    return sizes.pop()


def _allowed(array: Array, tolerance: Tolerance | None) -> float | None:
    return tolerance.get(datatype_of(array), 0.0) if isinstance(tolerance, Mapping) else tolerance


def made_up(
    signature: Signature, *, rows: int = _ROWS, size: int = 8, seed: int = 0, zeros: bool = False, positive: bool = False
) -> dict[str, Array]:
    """Inputs to try a model with: normal numbers (or `positive` ones), integers of 0 and 1 (or `zeros` alone, always a valid
    position), '' for text. Open dims past the batch take `size`, the batch `rows` unless it is fixed."""
    random = np.random.default_rng(seed)
    fixed = fixed_rows(signature)
    return {
        spec.name: _invented(spec, rows if fixed == -1 else fixed, size, random, zeros, positive) for spec in signature.inputs
    }


def fixed_rows(signature: Signature) -> int:
    """Rows of every batch, -1 where it may be of any size."""
    return max((spec.shape[0] for spec in signature.inputs if spec.shape), default=-1)


def try_out(
    forward: Callable[[Mapping[str, Array]], dict[str, Array]], signature: Signature, failures: tuple[type[Exception], ...]
) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """Made-up inputs that a model ran on, and its answer; None where it ran with no size tried for its open dims. Of several
    those with a finite answer in most rows. Raises `Invalid` where it fails on the very shapes it states."""
    closed = all(spec.shape is not None and -1 not in spec.shape[1:] for spec in signature.inputs)
    for size in _SIZES[:1] if closed else _SIZES:
        found: list[tuple[float, dict[str, Array], dict[str, Array]]] = []
        for zeros, positive in _draws(signature):
            samples = made_up(signature, size=size, zeros=zeros, positive=positive)
            try:
                given = forward(samples)
            except failures as error:
                failed = error
                continue
            found.append((min((float(_finite(array).mean()) for array in given.values()), default=1.0), samples, given))
            if found[-1][0] == 1:
                break
        if found:
            return max(found, key=lambda one: one[0])[1:]
        if closed:
            raise Invalid(f"The model does not run on inputs of the shapes it states: {first_line(failed)}") from failed
    return None


def check_batch(samples: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    """Raises `Invalid` where dim 0 of an answer is not the batch."""
    rows = count(samples)
    for name, array in given.items():
        if not array.shape or len(array) != rows:
            raise Invalid(f"Output '{name}' has the shape {list(array.shape)} for {rows} rows: its dim 0 must be the batch.")


def check_rows(
    forward: Callable[[Mapping[str, Array]], dict[str, Array]],
    signature: Signature,
    samples: Mapping[str, Array],
    given: Mapping[str, Array],
    failures: tuple[type[Exception], ...],
) -> None:
    """Raises `Invalid` where a row's answer, as in `given` to all `samples`, follows from the rows beside it, which are other
    callers' when it is served: the first and the last row are run alone or, where the batch is fixed, the first among copies of
    itself. What draws random numbers is let pass."""
    check_batch(samples, given)
    rows, fixed = count(samples), fixed_rows(signature)
    copies, chosen = (1, (0, rows - 1)) if fixed == -1 else (fixed, (0,))
    for row in chosen if rows > 1 else ():
        try:
            alone = forward(_copied(samples, signature, row, copies))
        except failures as error:
            raise Invalid(f"The model runs on {rows} rows but not on one alone: {first_line(error)}") from error
        for name, array in given.items():
            if alone[name].shape[:1] != (copies,) or _apart(array[row : row + 1], alone[name][:1], array):
                if _random(given, forward(samples)):
                    return
                raise Invalid(
                    f"Output '{name}' of a row follows from the rows beside it (row {row} of {rows}): dim 0 of some tensor is "
                    "not the batch, or rows are mixed. Rows of several callers are run as one batch: export the model in eval "
                    "mode, with the batch as dim 0 of every input and output, and nothing computed across it."
                )


def _copied(samples: Mapping[str, Array], signature: Signature, row: int, copies: int) -> dict[str, Array]:
    """A batch of one row so many times; of inputs whose dim 0 is fixed, as a constant's, while others' is open, as they are."""
    fixed = {spec.name for spec in signature.inputs if spec.shape and spec.shape[0] != -1}
    kept = fixed if len(fixed) < len(signature.inputs) else set()
    return {name: array if name in kept else np.repeat(array[row : row + 1], copies, axis=0) for name, array in samples.items()}


def _random(given: Mapping[str, Array], again: Mapping[str, Array]) -> bool:
    """Whether the same rows had another answer."""
    return any(array.shape != again[name].shape or _apart(array, again[name], array) for name, array in given.items())


def blank(given: Mapping[str, Array]) -> list[str]:
    """The outputs that have no finite number."""
    return [name for name, array in given.items() if not _finite(array).any()]


def said_of(names: list[str]) -> str:
    """The subject of a sentence: "Output 'y' has", "Outputs 'y', 'z' have"."""
    there = ", ".join(f"'{name}'" for name in names)
    return f"Output {there} has" if len(names) == 1 else f"Outputs {there} have"


def first_line(error: BaseException) -> str:
    """A library's reason, short: the rest is for its developers."""
    return str(error).strip().partition("\n")[0][:400]


def _draws(signature: Signature) -> Iterator[tuple[bool, bool]]:
    """Which numbers to try in turn: (integers are zeros, others are positive)."""
    kinds = {DATATYPES[spec.datatype].kind for spec in signature.inputs}
    for positive in (False, True) if "f" in kinds else (False,):
        for zeros in (False, True) if kinds & set("biu") else (False,):
            yield zeros, positive


def _invented(spec: TensorSpec, rows: int, size: int, random: np.random.Generator, zeros: bool, positive: bool) -> Array:
    first, *rest = spec.shape or (-1, -1)
    shape = (rows if first == -1 else first, *(size if dim == -1 else dim for dim in rest))
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    dtype = DATATYPES[spec.datatype]
    if dtype.kind == "f":
        numbers = random.standard_normal(shape)
        return (np.abs(numbers) if positive else numbers).astype(dtype)
    return np.zeros(shape, dtype) if zeros else random.integers(0, 2, shape).astype(dtype)


def _slices(signature: Signature, rows: int) -> Iterator[tuple[int, int]]:
    """Where to cut the rows: once in chunks, and the first ones again in small batches; only whole ones of a fixed size."""
    fixed = fixed_rows(signature)
    if fixed != -1 and rows < fixed:
        raise Invalid(f"The model takes batches of exactly {fixed} rows; there are {rows} samples to verify it with.")
    step = fixed if fixed != -1 else min(rows, _CHUNK)
    for start in range(0, rows - fixed + 1 if fixed != -1 else rows, step):
        yield start, min(start + step, rows)
    for size in BATCHES if fixed == -1 else ():
        if size < rows:
            yield 0, size


def _same_form(name: str, wanted: Array, given: Mapping[str, Array], rows: int) -> None:
    if name not in given:
        raise Invalid(f"The converted model gives no output '{name}'; it gives {', '.join(given)}.")
    array = given[name]
    if array.shape != wanted.shape or array.dtype != wanted.dtype:
        raise Invalid(
            f"Output '{name}' is {array.dtype}{list(array.shape)} where the original gives {wanted.dtype}{list(wanted.shape)}."
        )
    if not array.shape or len(array) != rows:
        raise Invalid(f"Output '{name}' has the shape {list(array.shape)} for {rows} rows: its dim 0 must be the batch.")


def _errors(wanted: Array, given: Array, floor: float) -> tuple[Array, Array]:
    """Greatest absolute error of each row, and relative to |wanted| or `floor`, whichever is more; infinite where text differs,
    or what is not finite. Whole numbers that differ do so by 1 at least, however large."""
    if wanted.dtype == object:
        absolute = np.where(wanted == given, 0.0, math.inf)
        relative = absolute
    else:
        a, b = wanted.astype(np.float64), given.astype(np.float64)
        with np.errstate(invalid="ignore"):
            absolute = np.where((wanted == given) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
            absolute = np.where(np.isnan(absolute), math.inf, absolute)
            if wanted.dtype.kind != "f":
                absolute = np.where(wanted == given, 0.0, np.maximum(absolute, 1.0))
            relative = absolute / np.maximum(floor, np.where(np.isfinite(a), np.abs(a), 1.0))
    return absolute.reshape(len(wanted), -1).max(axis=1, initial=0.0), relative.reshape(len(wanted), -1).max(
        axis=1, initial=0.0
    )


def _finite(array: Array) -> Array:
    """Of each row, whether it has a finite number or is of no floating-point numbers."""
    if array.dtype.kind != "f" or not array.size:
        return np.ones(1, bool)
    return np.asarray(np.isfinite(array).reshape(len(array) if array.ndim else 1, -1).any(axis=1))


def _largest(array: Array) -> float:
    """The greatest finite |number|; 0 where there is none."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0)) if array.dtype.kind == "f" else 0.0


def _floor(array: Array, largest: float) -> float:
    """1 at most, and less for an output of small numbers; not for whole ones or FP16, whose rounding is as large as they."""
    return min(1.0, max(largest, _LEAST)) if array.dtype in (np.float32, np.float64) else 1.0


def _apart(wanted: Array, given: Array, whole: Array) -> bool:
    """Whether rows of the output `whole` differ by more than how they were batched may make them. Where they are as wide as the
    longest of their batch, what both have is compared."""
    if wanted.ndim != given.ndim:
        return True
    shared = tuple(slice(min(sizes)) for sizes in zip(wanted.shape, given.shape, strict=True))
    wanted, given = wanted[shared], given[shared]
    allowed = _ALIKE if wanted.dtype.kind == "f" else 0.0
    return bool((_errors(wanted, given, max(_largest(whole), _LEAST))[1] > allowed).any())
