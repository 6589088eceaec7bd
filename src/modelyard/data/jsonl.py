"""JSONL files: one JSON object a line, each with the fields of the first. Where one differs, file, line and field are named.

Called by `importing`. Chats come this way as well: a field `messages` that is a list of {role, content}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from modelyard.data.records import Record, Records, value_of
from modelyard.data.splits import kept_apart
from modelyard.errors import Invalid
from modelyard.kinds import ArtefactView

ENDINGS = (".jsonl", ".ndjson")
MOST_LINE_BYTES = 64 << 20


def jsonl(view: ArtefactView, splits: Mapping[str, str | None], origin: dict[str, str]) -> Records:
    """The files of `splits`, which says what split each is of."""
    return Records(partial(_read, view, splits), origin, own=kept_apart(splits.values()))


def _read(view: ArtefactView, splits: Mapping[str, str | None]) -> Iterator[Record]:
    fields: tuple[str, ...] = ()
    first = ""
    for path, split in splits.items():
        for where, given in _objects(view, path):
            if not fields:
                fields, first = tuple(given), where
            if given.keys() != set(fields):
                raise _strange(where, given, fields, first)
            yield Record(where, split, {name: value_of(given[name], f"{where}, '{name}'") for name in fields})


def _strange(where: str, given: Mapping[str, Any], fields: tuple[str, ...], first: str) -> Invalid:
    absent = [name for name in fields if name not in given]
    what = f"field '{absent[0]}' is missing (null where there is no value)" if absent else ""
    what = what or f"field '{next(name for name in given if name not in fields)}' is too much"
    return Invalid(f"{where}: {what}; expected {', '.join(fields[:20])}, as in {first}. Nothing was imported.")


def _objects(view: ArtefactView, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with view.open(path) as file:
        for line, raw in enumerate(iter(partial(file.readline, MOST_LINE_BYTES + 1), b""), start=1):
            where = f"'{path}', line {line}"
            if len(raw) > MOST_LINE_BYTES:
                raise Invalid(f"{where}: longer than {MOST_LINE_BYTES:,} bytes. Nothing was imported.")
            if raw.strip():
                yield where, _object(raw, where)


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        given = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Invalid(f"{where}: byte {error.start} is not UTF-8 text. Nothing was imported.") from error
    except json.JSONDecodeError as error:
        raise Invalid(
            f"{where}, character {error.pos + 1}: {error.msg}; expected one JSON object. Nothing was imported."
        ) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid(f"{where}: {what}. Nothing was imported.") from error
    if not isinstance(given, dict) or not given:
        raise Invalid(f"{where}: {type(given).__name__} where an object with fields was expected. Nothing was imported.")
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return given


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON; expected a finite number or null")
