"""What a sweep searches, and how people write it: `lr=1e-4..1e-2:log,width=[16,32,64],epochs=3..10`.

Pure; `config` reads a sweep's space with it, `search` draws from what it returns. It knows no training: whether a name is an
option, and whether a value will do, is for `config`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import Field, model_validator

from modelyard.errors import Invalid
from modelyard.kinds import Config

_FORMS = "a range (1e-4..1e-2, 1e-4..1e-2:log, 3..10) or a list ([16,32,64])"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_OPEN, _CLOSE = "[{(", "]})"


class Range(Config):
    """From `low` to `high`, both included; of whole numbers where both are whole. `log`: equal ratios are equally likely."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.low >= self.high:
            raise Invalid(f"The range {self} does not rise: the lower end comes first.")
        if self.log and self.low <= 0:
            raise Invalid(f"The range {self} cannot be logarithmic: its lower end must be above 0.")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{':log' if self.log else ''}"


class Choice(Config):
    """One of these values."""

    values: tuple[Any, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _differ(self) -> Choice:
        written = [json.dumps(value, sort_keys=True) for value in self.values]
        if len(set(written)) < len(written):
            raise Invalid(f"The list {self} has a value twice.")
        return self

    @property
    def size(self) -> float:
        return len(self.values)

    def __str__(self) -> str:
        return f"[{','.join(value if isinstance(value, str) else json.dumps(value) for value in self.values)}]"


Parameter: TypeAlias = Range | Choice


def parse(text: str) -> dict[str, Parameter]:
    """A whole space, by name. Raises `Invalid`, saying which part is wrong and what was expected."""
    space: dict[str, Parameter] = {}
    for part in _split(text):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise Invalid(f"'{part.strip()}' is not NAME=VALUES; expected {_FORMS} after a name, as in lr=1e-4..1e-2:log.")
        if name in space:
            raise Invalid(f"'{name}' is swept twice; give each name one range or list.")
        space[name] = parameter(name, values)
    if not space:
        raise Invalid("The sweep names nothing to search; expected NAME=VALUES, as in lr=1e-4..1e-2:log,width=[16,32,64].")
    return space


def parameter(name: str, values: Any) -> Parameter:
    """What one name may be: as text, as a list, or as JSON has it. Raises `Invalid`."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"'{name}' is no name of an option; expected one as lr, or with dots as module.loss.")
    if isinstance(values, Range | Choice):
        return values
    if isinstance(values, list | tuple):
        return _choice(name, list(values))
    if isinstance(values, Mapping):
        return Choice.model_validate(values) if "values" in values else Range.model_validate(values)
    text = str(values)
    if text.startswith("["):
        return _choice(name, _list(name, text))
    if ".." in text:
        return _range(name, text)
    raise Invalid(f"'{name}={text}' leaves nothing to search; expected {_FORMS}. A single value goes into the configuration.")


def size(space: Mapping[str, Parameter]) -> float:
    """How many points there are; infinite where a range has no steps."""
    return math.prod(one.size for one in space.values())


def points(space: Mapping[str, Parameter]) -> Iterator[dict[str, Any]]:
    """Every point of a finite space, in the order it was written."""
    (name, first), rest = next(iter(space.items())), dict(list(space.items())[1:])
    values = first.values if isinstance(first, Choice) else range(int(first.low), int(first.high) + 1)
    for value in values:
        for others in points(rest) if rest else ({},):
            yield {name: value, **others}


def _split(text: str) -> Iterator[str]:
    """The parts between commas that are in no bracket and no quotes."""
    depth, quoted, start = 0, False, 0
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in _OPEN) - (letter in _CLOSE)
            if letter == "," and depth == 0:
                yield text[start:at]
                start = at + 1
    if depth != 0 or quoted:
        raise Invalid(f"'{text[start:].strip()}' has a bracket or quotes that are not closed.")
    if text[start:].strip():
        yield text[start:]


def _choice(name: str, values: list[Any]) -> Choice:
    if not values:
        raise Invalid(f"'{name}=[]' is an empty list; expected at least one value.")
    return Choice(values=tuple(values))


def _list(name: str, text: str) -> list[Any]:
    """Values in JSON, or words between commas: [adamw,sgd]."""
    if not text.endswith("]"):
        raise Invalid(f"'{name}={text}' goes on after its list; expected a comma before the next name.")
    try:
        return list(json.loads(text))
    except ValueError:
        return [_word(name, piece.strip()) for piece in _split(text[1:-1])]


def _word(name: str, text: str) -> Any:
    if not text:
        raise Invalid(f"The list of '{name}' has nothing between two commas.")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _range(name: str, text: str) -> Range:
    ends, _, scale = text.partition(":")
    low, _, high = ends.partition("..")
    if scale not in ("", "log"):
        raise Invalid(f"'{name}={text}' ends in ':{scale}'; only ':log' is known.")
    return Range(low=_number(name, text, low), high=_number(name, text, high), log=bool(scale))


def _number(name: str, whole: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Invalid(f"'{name}={whole}': '{text}' is no number; expected {_FORMS}.")
    return number
