"""The job `import-dataset`: from uploaded files or a bundled set to a dataset version. Runs in the gang's sandbox.

All or nothing: what is wrong with the source is said with its place, and nothing is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from modelyard.data.arrow import STATE, arrow, saved
from modelyard.data.bundled import bundled
from modelyard.data.config import ImportDatasetConfig
from modelyard.data.folders import ENDINGS as IMAGES
from modelyard.data.folders import image_folder, is_litter
from modelyard.data.jsonl import ENDINGS as JSONL
from modelyard.data.jsonl import jsonl
from modelyard.data.records import source
from modelyard.data.splits import by_name
from modelyard.data.tables import table
from modelyard.data.texts import ENDING as TEXT
from modelyard.data.texts import texts
from modelyard.data.writing import Source, write
from modelyard.errors import Invalid
from modelyard.kinds import ArtefactView, Input, JobContext, Outputs

ENDINGS = (TEXT, ".csv", ".tsv", ".parquet", *JSONL)
_BESIDE = ("README.md", "LICENSE", "dataset_infos.json", "dataset_info.json", "dataset_dict.json")  # what a hub keeps with data
_BEAT = 0.2  # seconds between signs of life


def run(config: ImportDatasetConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the output 'dataset'. Raises `Invalid` or `NotFound` naming what is wrong with the source."""
    source = open_source(config, inputs, _ticker(context, 0))
    folder = context.work / "dataset"
    folder.mkdir()
    card = write(source, folder, _ticker(context, source.rows))
    context.progress(source.rows, source.rows, "rows")
    rows = {name: split.rows for name, split in card.splits.items()}
    context.report(rows=source.rows)
    context.log(f"imported {source.rows} rows: {', '.join(f'{name} {n}' for name, n in rows.items())}")
    outputs.publish("dataset", folder, task=card.task, metadata=card.metadata)


def open_source(config: ImportDatasetConfig, inputs: Mapping[str, Input], tick: Callable[[int], None]) -> Source:
    """The source a config names: a bundled set, or files by their endings."""
    if config.source.startswith("sklearn:"):
        return bundled(config.source)
    if "files" not in inputs:
        raise Invalid(_nothing(config.source))
    view = inputs["files"].view
    paths = sorted(path for path in view.files if not is_litter(path))
    origin = {"from": config.source, "files": view.hash}
    if any(PurePosixPath(path).name == STATE for path in paths):
        return source(arrow(view, saved(view), config, origin), config, tick)
    endings = {ending for path in paths if (ending := PurePosixPath(path).suffix.lower()) in ENDINGS}
    data = [path for path in paths if PurePosixPath(path).suffix.lower() in ENDINGS]
    if not data or any(path.lower().endswith(IMAGES) for path in paths):
        if config.target or config.types or config.columns:
            raise Invalid(
                f"`target`, `types` and `columns` are for files with columns ({', '.join(ENDINGS[1:])}); there is none."
            )
        return image_folder(view)
    strange = [path for path in paths if path not in data and PurePosixPath(path).name not in _BESIDE]
    if strange or len(endings) > 1:
        other = strange[0] if strange else next(path for path in data if not path.endswith(min(endings)))
        raise Invalid(
            f"'{other}' is beside files of another kind ({', '.join(sorted(endings))}); expected one kind alone. "
            "Nothing was imported."
        )
    return _of_kind(endings.pop(), view, data, config, origin, tick)


def _of_kind(
    ending: str, view: ArtefactView, paths: list[str], config: ImportDatasetConfig, origin: dict[str, str],
    tick: Callable[[int], None],
) -> Source:  # fmt: skip
    """Files that have all the same ending."""
    if ending in (".csv", ".tsv"):
        if len(paths) > 1:
            raise Invalid(f"There are {len(paths)} CSV files; expected one CSV file alone. Nothing was imported.")
        return table(view, paths[0], config, tick)
    splits = by_name(paths)
    if ending == TEXT:
        if config.target or config.types or config.columns:
            raise Invalid("`target`, `types` and `columns` are for files with columns; plain text has none.")
        return texts(view, splits, config.rows, origin, tick)
    if ending == ".parquet":
        return source(arrow(view, splits, config, origin), config, tick)
    return source(jsonl(view, splits, origin), config, tick)


def _nothing(wanted: str) -> str:
    """What to do where there are no files."""
    if not wanted.startswith("hf:"):
        kinds = ", ".join(ENDINGS)
        return f"There is nothing to import: give files ({kinds}, or images by class) or a source such as sklearn:digits."
    return (
        f"A job has no network, so it cannot fetch '{wanted}'. `modelyard dataset import NAME --from {wanted}` fetches it in "
        "the client, where there is one (pip install 'modelyard[all]'); or give its Parquet or JSONL files."
    )


def _ticker(context: JobContext, total: int) -> Callable[[int], None]:
    """Progress and signs of life, a few a second; a total of 0 is one not known yet."""
    last = time.monotonic()

    def tick(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _BEAT:
            last = time.monotonic()
            context.check()
            context.progress(done, max(done, total), "rows")

    return tick
