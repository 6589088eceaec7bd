"""A point of what a search tries, and the steps it stands for. Pure; read by `work.py` in every process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from modelyard.kinds import Config
from modelyard.optimisation.steps.config import Distil, Prune, Qat, Quantize, Step, Unpad
from modelyard.optimisation.steps.text import show
from modelyard.training.sweep.space import Choice, Parameter, points

Shape = tuple[Step, ...]


class Point(Config):
    """Every option that can be searched, with what holds where it is not. What is cut away (`channels`, `heads`, `blocks`)
    is made good by a `lesson` of `epochs`: more training, or the original as teacher with `alpha`; without a cut there is
    none. `qat`: epochs under the rounding of eight bits, before `static-int8` alone. `unpad`: whether a graph of texts leaves
    padding out. `calibration` and `sensitive` are those of `quantize`."""

    channels: float = Field(default=0.0, ge=0, lt=1)
    heads: float = Field(default=0.0, ge=0, lt=1)
    blocks: float = Field(default=0.0, ge=0, lt=1)
    importance: Literal["l1", "l2", "taylor"] = "l2"
    multiple: int = Field(default=1, ge=1, le=1024)
    lesson: Literal["none", "finetune", "distil"] = "finetune"
    epochs: int = Field(default=5, ge=1, le=10_000)
    alpha: float = Field(default=0.5, gt=0, le=1)
    qat: int = Field(default=0, ge=0, le=10_000)
    unpad: bool = False
    quantize: Literal["none", "static-int8", "dynamic-int8", "weights-int8"] = "none"
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    sensitive: Annotated[int, Field(ge=0, strict=True)] | Literal["auto"] = 0

    def steps(self) -> tuple[Step, ...]:
        """The steps in their order; none where the point is the original in float."""
        return tuple(self._steps())

    def _steps(self) -> Iterator[Step]:
        if self.channels or self.heads or self.blocks:
            cut = {name: getattr(self, name) for name in ("channels", "heads", "blocks", "importance", "multiple")}
            yield Prune(**cut, finetune=self.epochs if self.lesson == "finetune" else 0)
            if self.lesson == "distil":
                yield Distil(epochs=self.epochs, alpha=self.alpha)
        static = self.quantize == "static-int8"
        if self.qat and static:
            yield Qat(epochs=self.qat)
        if self.unpad:
            yield Unpad()
        if self.quantize != "none":
            sensitive = self.sensitive if self.quantize != "weights-int8" else 0
            yield Quantize(method=self.quantize, calibration=self.calibration if static else "minmax", sensitive=sensitive)


def written(steps: Sequence[Any]) -> tuple[str, ...]:
    """Steps as `--with` takes them; the same for all points that come to the same."""
    return tuple(show(step) for step in steps)


def candidates(space: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """The points of a finite space, in the order it was written, the first of those that come to the same steps."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for point in points(space):
        found.setdefault(written(Point(**point).steps()), point)
    return list(found.values())


def shape_of(steps: Sequence[Step]) -> Shape | None:
    """What of steps decides what a variant costs: cuts and eight bits, without anything learned. None where that is not known
    before: which layers stay in float is found out on the trained network, and padding is of graphs, which are not trained."""
    shape: list[Step] = []
    for step in steps:
        if isinstance(step, Prune):
            shape.append(step.model_copy(update={"finetune": 0, "importance": "l2"}))
        elif isinstance(step, Unpad):
            return None
        elif isinstance(step, Quantize):
            if step.sensitive or step.float_layers:
                return None
            shape.append(Quantize(method=step.method, per_channel=step.per_channel))
    return tuple(shape)


def named(shape: Shape) -> str:
    """A shape in a word or more, unlike every other's."""
    return " ".join(map(show, shape)) or "fp32"


def usual(*, trains: bool, labels: bool, heads: bool, unpads: bool = False) -> dict[str, Choice]:
    """What is searched where nobody said: of a torch module, which can be trained (`trains`), a cut of its channels or `heads`
    with either lesson (`labels`: only a classifier can be taught), and eight bits of every kind; of a graph eight bits, and of
    one that `unpads` whether padding is computed."""
    if not trains:
        return ({"unpad": _one_of(False, True)} if unpads else {}) | {
            "quantize": _one_of("none", "static-int8", "weights-int8", "dynamic-int8"),
            "calibration": _one_of("minmax", "percentile"),
            "sensitive": _one_of(0, "auto"),
        }
    space: dict[str, Choice] = {"heads": _one_of(0.0, 0.25, 0.5)} if heads else {"channels": _one_of(0.0, 0.25, 0.5, 0.667)}
    if labels:
        space["lesson"] = _one_of("distil", "finetune")
    return space | {"qat": _one_of(0, 1), "quantize": _one_of("none", "static-int8", "weights-int8", "dynamic-int8")}


def _one_of(*values: Any) -> Choice:
    return Choice(values=values)
