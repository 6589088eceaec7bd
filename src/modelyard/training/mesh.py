"""How a gang's ranks are arranged: four axes, and which rank stands where. Pure, and without torch: read at submission too.

`data` parts the rows, `shard` parts rows and holds each parameter in parts, `tensor` computes each layer in parts, `pipe` gives
each rank some of the layers. Ranks are numbered pipe × data × shard × tensor: the neighbours that talk most have neighbouring
numbers and so, on a cluster, the same node.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from modelyard.errors import Invalid

AXES = ("pipe", "data", "shard", "tensor")  # outermost first
AUTO, DATA = "auto", "data"  # meshes that depend on the number of ranks
_ROOM = 0.6  # of a rank's memory may be parameters, gradients and the optimiser's state: the rest is for activations


@dataclass(frozen=True, slots=True)
class Mesh:
    """The ranks along each axis."""

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipe: int = 1

    @property
    def ranks(self) -> int:
        return prod(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Ranks by axis, in the order of `AXES`."""
        return self.pipe, self.data, self.shard, self.tensor

    @property
    def replicas(self) -> int:
        """How many parts a step's rows are cut into: the ranks along `tensor` and `pipe` compute on the same rows."""
        return self.data * self.shard

    @property
    def whole(self) -> bool:
        """Every rank holds and computes the whole network: there is no axis but `data`."""
        return self.ranks == self.data

    def place(self, rank: int) -> Place:
        """Where `rank` stands."""
        at = []
        for size in reversed(self.shape):
            rank, position = divmod(rank, size)
            at.append(position)
        tensor, shard, data, pipe = at
        return Place(pipe=pipe, data=data, shard=shard, tensor=tensor, replica=data * self.shard + shard)

    def __str__(self) -> str:
        named = [f"{axis}={size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1]
        return ",".join(named) or "data=1"


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's position along each axis; `replica`: which of the parts of a step's rows is its own."""

    pipe: int
    data: int
    shard: int
    tensor: int
    replica: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model's own plan allows: `unit` is the number of parameters of its largest block, which `shard` puts together
    while it computes (None: it names no blocks, so all of them); `tensor` divides what its layers are made of."""

    unit: int | None = None
    tensor: int = 1


def parse(text: str) -> dict[str, int]:
    """`data=2,shard=2` by axis. Raises `Invalid` for anything else."""
    axes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = (piece.strip() for piece in part.partition("="))
        if axis not in AXES:
            raise Invalid(f"The mesh '{text}' names the axis '{axis}'; there are data, shard, tensor and pipe: data=2,shard=2.")
        if axis in axes:
            raise Invalid(f"The mesh '{text}' names the axis '{axis}' twice.")
        if not (number.isascii() and number.isdecimal() and int(number[:6]) > 0 and len(number) <= 6):
            raise Invalid(
                f"The mesh '{text}' gives the axis '{axis}' {number or 'no'!s} ranks; a whole number from 1 was expected."
            )
        axes[axis] = int(number)
    return axes


def check(text: str, ranks: int | None = None) -> None:
    """Raises `Invalid` where `text` is no mesh, or none of `ranks`."""
    if text in (AUTO, DATA):
        return
    mesh = Mesh(**parse(text))
    if ranks is not None and mesh.ranks != ranks:
        product = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, mesh.shape, strict=True) if size > 1) or "data 1"
        raise Invalid(
            f"The mesh '{text}' is of {mesh.ranks} ranks ({product}); the job has {ranks}: give --ranks {mesh.ranks}."
        )


def propose(parameters: int, each: int, ranks: int, memory: int | None, limits: Limits) -> tuple[Mesh, str]:
    """A mesh of `ranks` for a network of so many parameters, and why in words. `each`: bytes that a parameter takes while it
    trains (itself, its gradient, the optimiser's state); `memory`: bytes a rank has, where known.

    The axis that costs least communication comes first: `data` while a rank holds everything, then `shard` as wide as it must
    be, then `tensor`. It never proposes `pipe`, which pays where links between nodes are slow: that is for a person to say.
    Raises `Invalid` where no mesh of these ranks holds the network."""
    need, unit = parameters * each, (limits.unit or parameters) * each // 2  # a block is put together with its gradient
    facts = f"{parameters:,} parameters take {_size(need)} while they train"
    if memory is None:
        return Mesh(data=ranks), f"data={ranks}: {facts}; what memory a rank has is not known"
    room = int(memory * _ROOM)
    facts += f", and a rank has {_size(room)} for them ({_ROOM:.0%} of {_size(memory)})"
    if need <= room:
        return Mesh(data=ranks), f"data={ranks}: {facts}: it holds all"
    for tensor in (n for n in _divisors(ranks) if limits.tensor % n == 0):
        for shard in _divisors(ranks // tensor):
            held = need / (shard * tensor) + (unit / tensor if shard > 1 else 0)
            if held <= room:
                mesh = Mesh(data=ranks // tensor // shard, shard=shard, tensor=tensor)
                return mesh, f"{mesh}: {facts}; in {shard * tensor} parts it holds its own and the block at work, {_size(held)}"
    raise Invalid(
        f"No mesh of {ranks} ranks holds this model: {facts}. Give more ranks or more memory; let the model's plan name "
        "'blocks' and 'tensor', if it does not."
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
