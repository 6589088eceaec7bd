"""Parquet files, and the Arrow files of a Hugging Face dataset that `save_to_disk` wrote, as records.

Called by `importing`. Types are mapped one by one and an unsupported one is refused with its column. Files of Hugging Face name
the classes of a label in their schema; nothing of its library is needed to read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.records import Record, Records, value_of
from modelyard.data.splits import NAMES, kept_apart
from modelyard.errors import Invalid, not_found
from modelyard.kinds import ArtefactView

STATE = "state.json"  # beside the files of each split of a saved dataset
_ROWS = 256  # read at once
_SUPPORTED = "text, numbers, booleans, images (binary, or {bytes, path}) and chats (a list of {role, content})"
_IMAGE, _MESSAGE = {"bytes", "path"}, {"role", "content"}


def arrow(view: ArtefactView, splits: Mapping[str, str | None], config: ImportDatasetConfig, origin: dict[str, str]) -> Records:
    """The files of `splits`, which says what split each is of. Raises `Invalid` for a type that is not supported, and for files
    that differ in their columns."""
    first, *others = splits
    schema = _schema(view, first)
    for name in config.columns or ():
        if name not in schema.names:
            raise not_found("column", name, schema.names)
    names = [name for name in schema.names if config.columns is None or name in (*config.columns, config.target)]
    for name in names:
        if schema.names.count(name) > 1 or not _is_supported(schema.field(name).type):
            raise Invalid(
                f"'{first}', column '{name}' is of type {schema.field(name).type}; supported: {_SUPPORTED}. "
                "Name the columns to import, or change it. Nothing was imported."
            )
    for path in others:
        _check_same(schema, _schema(view, path), names, first, path)
    classes = {name: labels for name, labels in _classes(schema).items() if name in names}
    return Records(partial(_read, view, splits, names, classes), origin, classes, kept_apart(splits.values()))


def saved(view: ArtefactView) -> dict[str, str | None]:
    """The data files of what `save_to_disk` wrote, and the split of each: that of its folder's name."""
    found: dict[str, str | None] = {}
    for state in sorted(path for path in view.files if PurePosixPath(path).name == STATE):
        folder = PurePosixPath(state).parent
        split = NAMES.get(folder.name.lower()) if folder.name else None
        if folder.name and split is None:
            raise Invalid(
                f"'{folder}' is no split that is known; expected one of {', '.join(NAMES)}: leave it out. Nothing was imported."
            )
        for name in _data_files(view, state):
            found[str(folder / name)] = split
    absent = [path for path in found if path not in view.files]
    if absent:
        raise Invalid(f"'{absent[0]}' is missing, which {STATE} names. Nothing was imported.")
    if "train" not in found.values():
        return dict.fromkeys(found)
    return found


def _data_files(view: ArtefactView, state: str) -> list[str]:
    try:
        with view.open(state) as file:
            return [str(entry["filename"]) for entry in json.load(file)["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"'{state}' is not what `save_to_disk` writes: it names no data files. Nothing was imported.") from error


def _batches(file: BinaryIO, path: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if path.lower().endswith(".parquet"):
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, parquet.iter_batches(_ROWS, use_threads=False)
    stream = pa.ipc.open_stream(file)
    return stream.schema, iter(stream)


def _schema(view: ArtefactView, path: str) -> pa.Schema:
    try:
        with view.open(path) as file:
            return _batches(file, path)[0]
    except (pa.ArrowException, OSError) as error:
        raise Invalid(f"'{path}' cannot be read: {str(error)[:200]} Nothing was imported.") from error


def _read(
    view: ArtefactView, splits: Mapping[str, str | None], names: list[str], classes: Mapping[str, tuple[str, ...]]
) -> Iterator[Record]:
    for path, split in splits.items():
        row = 0
        try:
            with view.open(path) as file:
                for batch in _batches(file, path)[1]:
                    for raw in batch.select(names).to_pylist():
                        row += 1
                        where = f"'{path}', row {row}"
                        yield Record(
                            where, split, {name: _value(raw[name], classes.get(name), f"{where}, '{name}'") for name in names}
                        )
        except (pa.ArrowException, OSError) as error:
            raise Invalid(f"'{path}' cannot be read after row {row}: {str(error)[:200]} Nothing was imported.") from error


def _value(raw: Any, labels: tuple[str, ...] | None, where: str) -> Any:
    if labels is not None and raw is not None:
        if not 0 <= raw < len(labels):
            raise Invalid(f"{where}: class {raw} where 0 to {len(labels) - 1} was expected: a row without a label cannot be "
                          "learned from; leave out the file it is in. Nothing was imported.")  # fmt: skip
        return labels[raw]
    if isinstance(raw, dict):
        if not raw["bytes"]:
            raise Invalid(f"{where}: the image is not in the file, only its path {raw['path']!r}. Nothing was imported.")
        return raw["bytes"]
    return value_of(raw, where)


def _is_supported(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_type
        return pa.types.is_struct(inner) and {part.name for part in inner} >= _MESSAGE
    if pa.types.is_struct(kind):
        return {part.name for part in kind} == _IMAGE
    tests = (
        pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_binary, pa.types.is_large_binary,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _check_same(schema: pa.Schema, other: pa.Schema, names: list[str], first: str, path: str) -> None:
    for name in names:
        here = other.field(name).type if name in other.names else None
        if here != schema.field(name).type:
            what = f"is of type {here}" if here else "is missing"
            raise Invalid(
                f"'{path}', column '{name}' {what}; in '{first}' it is {schema.field(name).type}. Nothing was imported."
            )


def _classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, as Hugging Face's libraries leave them with the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(f["names"]) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, AttributeError, TypeError):
        return {}
