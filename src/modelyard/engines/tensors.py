"""Tensors as engines meet them: whether those that a version's card states are those that its graph has, asked at load, so that
a card that is wrong is an error before the first call; and texts, which are callers' bytes.
"""

from __future__ import annotations

from modelyard.errors import Invalid
from modelyard.tensors import Signature, TensorSpec, shown


def agree(card: Signature, graph: Signature) -> None:
    """Raises `Invalid` naming the first tensor of the card that the graph does not have in that form."""
    for what, stated, there in (("input", card.inputs, graph.inputs), ("output", card.outputs, graph.outputs)):
        specs = {spec.name: spec for spec in there}
        for spec in stated:
            if spec.name not in specs or not _fits(spec, specs[spec.name]):
                found = ", ".join(shown(s) for s in there)
                raise Invalid(f"model.json states the {what} {shown(spec)}, but the graph's {what}s are {found}.")
    missing = sorted({spec.name for spec in graph.inputs} - {spec.name for spec in card.inputs})
    if missing:
        raise Invalid(f"The graph also takes {', '.join(missing)}, which model.json does not state.")


def _fits(stated: TensorSpec, there: TensorSpec) -> bool:
    if stated.datatype != there.datatype:
        return False
    if stated.shape is None or there.shape is None:
        return True
    return len(stated.shape) == len(there.shape) and all(b in (-1, a) for a, b in zip(stated.shape, there.shape, strict=True))


def text_of(name: str, row: int, value: bytes | str) -> str:
    """An element of a BYTES tensor as text. Raises `Invalid`, naming where it stands, for what is no UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise Invalid(f"Row {row} of '{name}': byte {error.start} is not UTF-8 text.") from error
