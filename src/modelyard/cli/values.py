"""Values as people write them on a command line: 'module.loss=mse', 'x=[[1,2]]', 'x=@rows.json'."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modelyard.errors import Invalid
from modelyard.plugins import load

_NO_SETTINGS = frozenset({"name", "reference", "wait", "on_event"})  # what commands say to the client themselves


def nested(pairs: Iterable[str]) -> dict[str, Any]:
    """'a.b=1', 'a.c=x' → {'a': {'b': 1, 'c': 'x'}}; values are JSON where they can be, else text. Raises `Invalid` for what is
    said twice."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, value = _split(pair)
        *above, last = path.split(".")
        at = tree
        for part in above:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise Invalid(f"'{pair}': '{part}' has a value already, so it cannot have parts.")
        if last in at:
            raise Invalid(f"'{path}' is said twice: give it once.")
        at[last] = _json_or_text(value)
    return tree


def asked(
    settings: Iterable[str] | None, said: Mapping[str, Any], base: Mapping[str, Any] | None = None, way: str = "--set"
) -> dict[str, Any]:
    """What --set gives beside the command's own options (None where not said); both go before what `base` has. Raises `Invalid`
    for what both say, and for what is no setting."""
    given, options = nested(settings or ()), {name: value for name, value in said.items() if value is not None}
    if twice := sorted(given.keys() & options.keys()):
        raise Invalid(f"'{twice[0]}' is said twice, by its option and by {way}: give it once.")
    whole = {**(base or {}), **given, **options}
    if unknown := sorted(whole.keys() & _NO_SETTINGS):
        raise Invalid(f"'{unknown[0]}' is no setting: the command says it itself.")
    return whole


def names(value: Any) -> list[str]:
    """'light,camera', or a list of names, as a list."""
    if isinstance(value, list | tuple):
        return [str(name) for name in value]
    text = value if isinstance(value, str) else json.dumps(value)
    return [name for name in map(str.strip, text.split(",")) if name]


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
