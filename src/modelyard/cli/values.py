"""Values as people write them on a command line: 'module.loss=mse', 'x=[[1,2]]', 'x=@rows.json'."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelyard.errors import Invalid
from modelyard.plugins import load


def nested(pairs: Iterable[str]) -> dict[str, Any]:
    """'a.b=1', 'a.c=x' → {'a': {'b': 1, 'c': 'x'}}; values are JSON where they can be, else text."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, value = _split(pair)
        *above, last = path.split(".")
        at = tree
        for part in above:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise Invalid(f"'{pair}': '{part}' has a value already, so it cannot have parts.")
        at[last] = _json_or_text(value)
    return tree


def tensors(pairs: Iterable[str]) -> dict[str, Any]:
    """'x=[[1,2]]' or 'x=@file' (.json or .npy) → inputs of a prediction by name."""
    return {
        name: _from_file(Path(value[1:])) if value.startswith("@") else _json(name, value) for name, value in map(_split, pairs)
    }


def seconds(text: str | None) -> float | None:
    """'90', '15m', '12h' or '30d' as seconds."""
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        count = float(number) * units[unit]
    except ValueError:
        count = 0.0
    if not 0 < count < float("inf"):
        raise Invalid(f"'{text}' is no time from now; expected something like 15m, 12h or 30d.")
    return count


def rate(text: str | None) -> float | None:
    """'100/s', '30/m' or '1000/h' as calls a second; 'none' and None as none."""
    if text is None or text == "none":
        return None
    number, _, unit = text.partition("/")
    try:
        calls = float(number) / {"": 1, "s": 1, "m": 60, "h": 3600}[unit]
    except (ValueError, KeyError):
        calls = 0.0
    if not 0 < calls < float("inf"):
        raise Invalid(f"'{text}' is no rate of calls; expected something like 100/s or 30/m, or none.")
    return calls


def amount_of_bytes(text: str | None) -> int | None:
    """'8GiB', '512MiB', '500MB' or '2000000' as bytes."""
    if text is None:
        return None
    written = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    if written is None:
        raise Invalid(f"'{text}' is no amount of memory; expected something like 8GiB, 512MiB or 500MB.")
    number, unit, binary = written.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def _split(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not name or not equals:
        raise Invalid(f"'{pair}' is not NAME=VALUE.")
    return name, value


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise Invalid(f"Input '{name}' is not JSON ({error}); expected nested lists as [[1, 2]], or @FILE.") from error


def _from_file(file: Path) -> Any:
    try:
        if file.suffix == ".npy":
            return load("numpy:load")(file, allow_pickle=False)
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"'{file}' cannot be read: {error}.") from error
