"""CSV files: read strictly, twice. The first pass finds each column's type and every broken row; only then is anything written.

Called by `importing.run` for an uploaded file. A number column may miss values, a target may not. The reader takes quotes,
a byte order mark and one of four delimiters; it never guesses past an error: file, line, column and value are named.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from modelyard.data.config import ColumnType, ImportDatasetConfig
from modelyard.data.datasets import Feature
from modelyard.data.targets import MOST_CLASSES, number, target_feature
from modelyard.data.writing import Sample, Source, table_content
from modelyard.errors import Invalid, not_found
from modelyard.kinds import ArtefactView

DELIMITERS = ",;\t|"
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})  # in a number column, any case; in text only ''
MOSTLY = 0.9  # a column with this part of numbers is a number column: what is left over is broken, not text
_LONGEST_INTEGER = 40  # characters, before int() is asked
_SNIFFED_LINES = 20

C = TypeVar("C")
Row = tuple[int, list[str]]  # line on which it starts, fields


def integer(text: str) -> int | None:
    """An integer of 64 bits, or None."""
    if "_" in text or len(text) > _LONGEST_INTEGER:
        return None
    try:
        value = int(text)
    except ValueError:
        return None
    return value if -(2**63) <= value < 2**63 else None


@dataclass(slots=True)
class Column:
    """What the first pass learns of a column. `first_not` is where the first value stands that is not of that type."""

    name: str
    present: int = 0
    empty: int = 0  # missing in any column
    missing: int = 0  # missing in a number column
    numbers: int = 0
    first_empty: int = 0
    first_missing: int = 0
    first_not: dict[str, tuple[int, str]] = field(default_factory=dict)
    values: set[str] = field(default_factory=set)

    def add(self, line: int, text: str) -> None:
        self.present += 1
        if text == "":
            self.empty += 1
            self.first_empty = self.first_empty or line
        if text.lower() in MISSING:
            self.missing += 1
            self.first_missing = self.first_missing or line
        elif integer(text) is not None:
            self.numbers += 1
        elif number(text) is not None:
            self.numbers += 1
            self.first_not.setdefault("int", (line, text))
        else:
            self.first_not.setdefault("int", (line, text))
            self.first_not.setdefault("float", (line, text))
        if len(self.values) <= MOST_CLASSES:
            self.values.add(text)

    def infer(self) -> ColumnType:
        present = self.present - self.missing
        if not present or self.numbers < MOSTLY * present:
            return "text"
        return "int" if not self.missing and "int" not in self.first_not else "float"


def table(view: ArtefactView, path: str, config: ImportDatasetConfig, tick: Callable[[int], None]) -> Source:
    """The CSV file `path` as a source. Raises `Invalid` naming file, line, column, value and what was expected there."""
    delimiter = config.delimiter or sniff(view, path)
    columns: dict[str, Column] = {}
    rows = 0
    for rows, (line, fields) in enumerate(_rows(view, path, delimiter), start=1):
        columns = columns or {name: Column(name) for name in _header(view, path, delimiter)}
        for column, text in zip(columns.values(), fields, strict=True):
            column.add(line, text)
        tick(rows)
    if not rows:
        raise Invalid(f"'{path}' has no rows below its header; nothing was imported.")
    wanted = chosen(columns, config)
    types = _types(path, wanted, config)
    features, task = _features(path, wanted, types, config)
    samples = _samples(view, path, delimiter, list(columns), features, config.target)
    return Source(features, config.target, task, rows, samples, {"from": "files", "files": view.hash, "file": path})


def chosen(columns: Mapping[str, C], config: ImportDatasetConfig) -> dict[str, C]:
    """Those columns that are to be imported. Raises `NotFound` where `config` names one that is not there."""
    for name in (*config.types, *(config.columns or ()), *([config.target] if config.target else [])):
        if name not in columns:
            raise not_found("column", name, columns)
    every = config.columns is None
    return {name: column for name, column in columns.items() if every or name in (*(config.columns or ()), config.target)}


def sniff(view: ArtefactView, path: str) -> str:
    """The delimiter that parts the first lines into the most fields, equally many on each; a comma where none does."""
    lines = [line for line, _ in zip(_lines(view, path), range(_SNIFFED_LINES), strict=False)]
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            widths = {len(row) for row in csv.reader(lines, delimiter=delimiter) if row}
        except csv.Error:
            continue
        if len(widths) == 1 and max(widths) > most:
            best, most = delimiter, max(widths)
    if most == 1:  # no delimiter fits every line: a broken row, so go by the header alone
        best = max(DELIMITERS, key=lambda delimiter: lines[0].count(delimiter)) if lines else ","
    return best


def _lines(view: ArtefactView, path: str) -> Iterator[str]:
    with view.open(path) as file:
        for line, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise Invalid(f"'{path}', line {line}: byte {error.start} is not UTF-8 text. Nothing was imported.") from error


def _records(view: ArtefactView, path: str, delimiter: str) -> Iterator[Row]:
    """Every row, the header first, blank lines left out, fields stripped of surrounding blanks."""
    reader = csv.reader(_lines(view, path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise Invalid(f"'{path}', line {line}: {error}; expected quoted or plain fields. Nothing was imported.") from error
        if fields is None:
            return
        if fields:
            yield line, [text.strip() for text in fields]


def _header(view: ArtefactView, path: str, delimiter: str) -> list[str]:
    line, names = next(_records(view, path, delimiter), (1, []))
    if not names or all(number(name) is not None for name in names):
        raise Invalid(f"'{path}', line {line}: {names} names no columns; the first line must. Nothing was imported.")
    wrong = sorted({name for name in names if names.count(name) > 1 or not name})
    if wrong:
        raise Invalid(f"'{path}', line {line}: column names must be there and differ; wrong: {wrong}. Nothing was imported.")
    return names


def _rows(view: ArtefactView, path: str, delimiter: str) -> Iterator[Row]:
    """The rows below the header. Raises `Invalid` for one of another width."""
    names = _header(view, path, delimiter)
    records = _records(view, path, delimiter)
    next(records, None)
    for line, fields in records:
        if len(fields) != len(names):
            at = (
                f"column '{names[len(fields)]}' is missing"
                if len(fields) < len(names)
                else f"{fields[len(names)]!r} is too much"
            )
            raise Invalid(
                f"'{path}', line {line}: {len(fields)} fields, {at}; expected {len(names)} ({', '.join(names[:20])}). "
                "Nothing was imported."
            )
        yield line, fields


def _types(path: str, columns: Mapping[str, Column], config: ImportDatasetConfig) -> dict[str, ColumnType]:
    types = {name: config.types.get(name) or column.infer() for name, column in columns.items()}
    for name, column in columns.items():
        kind = types[name]
        if kind != "text" and kind in column.first_not:
            line, text = column.first_not[kind]
            raise Invalid(
                f"'{path}', line {line}, column '{name}': {text[:60]!r} where {_WANTED[kind]} was expected"
                f" (or declare the column as text). Nothing was imported."
            )
        text_column = kind == "text"
        missing = column.empty if text_column else column.missing
        line = column.first_empty if text_column else column.first_missing
        if missing == column.present or (missing and (name == config.target or kind == "int")):
            wanted = (
                "the column is empty"
                if missing == column.present
                else f"expected {_WANTED[kind]}, as it is the target or an int"
            )
            raise Invalid(f"'{path}', line {line}, column '{name}': no value; {wanted}. Nothing was imported.")
    return types


_WANTED = {"int": "an integer", "float": "a number", "text": "a text"}


def _features(
    path: str, columns: Mapping[str, Column], types: Mapping[str, ColumnType], config: ImportDatasetConfig
) -> tuple[dict[str, Feature], str | None]:
    features = {name: Feature(type=kind) for name, kind in types.items()}
    target = config.target
    if target is None:
        return features, None
    where = f"'{path}', column '{target}'"
    features[target], task = target_feature(where, types[target], columns[target].values, config.task, "tabular-classification")
    return features, task


def _samples(
    view: ArtefactView, path: str, delimiter: str, names: list[str], features: Mapping[str, Feature], target: str | None
) -> Iterator[Sample]:
    readers = {name: _reader(feature) for name, feature in features.items()}
    for line, fields in _rows(view, path, delimiter):
        values = {name: readers[name](text) for name, text in zip(names, fields, strict=True) if name in readers}
        yield Sample(table_content(values, target), values, f"'{path}', line {line}")


def _reader(feature: Feature) -> Callable[[str], Any]:
    if feature.names is not None:
        return {name: position for position, name in enumerate(feature.names)}.__getitem__
    return {"float": number, "int": integer, "text": lambda text: text or None}[feature.type]
