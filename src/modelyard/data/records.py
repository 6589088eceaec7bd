"""Rows with named, typed values, as JSONL, Parquet and Arrow files have them: read twice. The first pass finds each column's
type and everything that is wrong; only then is anything written.

Called by `importing`; the readers (`jsonl.py`, `arrow.py`) make `Records` of files. A value's own type counts and nothing is
guessed: a text in a column of numbers is an error that names its place, unless the column was declared as text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modelyard.data.chats import Chat, chat
from modelyard.data.config import ImportDatasetConfig, Task
from modelyard.data.datasets import Feature, FeatureType
from modelyard.data.tables import chosen, integer
from modelyard.data.targets import MOST_CLASSES, number, target_feature
from modelyard.data.writing import Sample, Source, table_content
from modelyard.errors import Invalid

Value = int | float | str | bytes | None
KINDS: Mapping[type, FeatureType] = {int: "int", float: "float", str: "text", bytes: "image", Chat: "chat"}
WANTED = {"int": "an integer", "float": "a number", "text": "a text", "image": "an image", "chat": "a list of messages"}
_EXACT = 2**53  # beyond that a float does not hold every integer


class Record(NamedTuple):
    """A row: where it stands, the split that the source puts it in (None: in none), and its values, which `value_of` made."""

    where: str
    split: str | None
    values: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Records:
    """`read` begins anew at each call. `names` are the classes, in order, of columns for which the source states them; `own`
    the splits that it keeps apart."""

    read: Callable[[], Iterator[Record]]
    origin: dict[str, str]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own: frozenset[str] = frozenset()


def value_of(raw: Any, where: str) -> Value:
    """A value as it is kept: NaN is a missing one, true is 1, a list is a chat. Raises `Invalid` naming `where`."""
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return None
    if isinstance(raw, bool):
        return int(raw)
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        raise Invalid(f"{where}: {raw} does not fit 64 bits. Nothing was imported.")
    if isinstance(raw, float) and math.isinf(raw):
        raise Invalid(f"{where}: {raw} where a finite number was expected. Nothing was imported.")
    if isinstance(raw, list):
        return chat(raw, where)
    if isinstance(raw, str):
        try:
            raw.encode()
        except UnicodeEncodeError as error:
            raise Invalid(f"{where}: character {error.start} is no Unicode text. Nothing was imported.") from error
    if not isinstance(raw, (int, float, str, bytes)):
        raise Invalid(f"{where}: {_short(raw)} where a text, a number, true, false or null was expected. Nothing was imported.")
    return raw


@dataclass(slots=True)
class Column:
    """What the first pass learns of a column: its type and where that was first seen; `values` as texts, for a target."""

    kind: FeatureType | None = None
    since: str = ""
    missing: int = 0
    first_missing: str = ""
    values: set[str] = field(default_factory=set)

    def add(self, value: Value, where: str, declared: str | None) -> None:
        if value is None:
            self.missing += 1
            self.first_missing = self.first_missing or where
            return
        value = _as_declared(value, declared, where)
        kind = KINDS[type(value)]
        if self.kind is None or {self.kind, kind} == {"int", "float"}:
            self.kind = "float" if self.kind else kind
            self.since = self.since or where
        elif kind != self.kind:
            raise Invalid(
                f"{where}: {_short(value)} where {WANTED[self.kind]} was expected, as in {self.since}"
                " (or declare the column as text). Nothing was imported."
            )
        if len(self.values) <= MOST_CLASSES and kind in ("text", "int"):
            self.values.add(str(value))

    def type(self, name: str, target: bool) -> FeatureType:
        """The feature's type; integers of which some are missing are floats. Raises `Invalid` where too much is missing."""
        if self.kind is None:
            raise Invalid(f"{self.first_missing}: no value; the column is empty: leave '{name}' out. Nothing was imported.")
        if self.missing and (target or self.kind == "image"):
            raise Invalid(f"{self.first_missing}: no value where {WANTED[self.kind]} was expected. Nothing was imported.")
        return "float" if self.kind == "int" and self.missing else self.kind


def source(records: Records, config: ImportDatasetConfig, tick: Callable[[int], None]) -> Source:
    """Records as a source. A column with stated classes is the target where it is the only one and none was asked for."""
    columns: dict[str, Column] = {}
    rows = 0
    for rows, record in enumerate(records.read(), start=1):
        if not columns:
            columns = chosen({name: Column() for name in record.values}, config)
        for name, column in columns.items():
            column.add(record.values[name], f"{record.where}, '{name}'", config.types.get(name))
        tick(rows)
    if not rows:
        raise Invalid("The files have no rows; nothing was imported.")
    stated = [name for name in columns if name in records.names]
    target = config.target or (stated[0] if len(stated) == 1 else None)
    features, task = _features(columns, target, records.names, config.task)
    samples = _samples(records, features, target, config)
    return Source(features, target, task, rows, samples, records.origin, records.own)


def _features(
    columns: Mapping[str, Column], target: str | None, names: Mapping[str, tuple[str, ...]], task: Task | None
) -> tuple[dict[str, Feature], str | None]:
    features = {name: Feature(type=column.type(name, name == target)) for name, column in columns.items()}
    kinds = [feature.type for name, feature in features.items() if name != target]
    if target is None:
        return features, "text-generation" if kinds in (["text"], ["chat"]) else None
    usual: Task = "tabular-classification"
    if kinds.count("image") == 1:
        usual = "image-classification"
    elif kinds == ["text"]:
        usual = "text-classification"
    column = columns[target]
    features[target], found = target_feature(f"Column '{target}'", features[target].type, column.values, task, usual)
    if target in names and features[target].names:
        features[target] = Feature(type="label", names=names[target])
    return features, found


def _samples(
    records: Records, features: Mapping[str, Feature], target: str | None, config: ImportDatasetConfig
) -> Iterator[Sample]:
    positions = {name: {n: at for at, n in enumerate(f.names)} for name, f in features.items() if f.names is not None}
    for record in records.read():
        values: dict[str, Value] = {}
        for name, feature in features.items():
            value, where = record.values[name], f"{record.where}, '{name}'"
            if value is not None:
                value = _as_declared(value, config.types.get(name), where)
                value = positions[name][str(value)] if name in positions else _as_float(value, feature, where)
            values[name] = value
        yield Sample(table_content(values, target), values, record.where, record.split)


def _as_declared(value: Value, declared: str | None, where: str) -> Value:
    """A value of a column of which the config states the type."""
    if declared is None or KINDS[type(value)] == declared:
        return value
    text = str(value) if KINDS[type(value)] in ("text", "int", "float") else ""
    made: Value = {"text": lambda t: t or None, "int": integer, "float": number}[declared](text)
    if made is None:
        raise Invalid(f"{where}: {_short(value)} where {WANTED[declared]} was expected. Nothing was imported.")
    return made


def _as_float(value: Value, feature: Feature, where: str) -> Value:
    if feature.type != "float" or not isinstance(value, int):
        return value
    if abs(value) > _EXACT:
        raise Invalid(
            f"{where}: {value} is too large for a column of decimal numbers, or of integers of which some are missing"
            " (declare the column as text). Nothing was imported."
        )
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
