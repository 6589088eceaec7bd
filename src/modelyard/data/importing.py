"""The job `import-dataset`: from uploaded files or a bundled set to a dataset version. Runs in the gang's sandbox.

All or nothing: what is wrong with the source is said with its place, and nothing is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from modelyard.data.bundled import bundled
from modelyard.data.config import ImportDatasetConfig
from modelyard.data.folders import image_folder, is_litter
from modelyard.data.tables import table
from modelyard.data.writing import Source, write
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs

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
    """The source a config names: a bundled set, one CSV file, or images by class."""
    if config.source != "files":
        return bundled(config.source)
    if "files" not in inputs:
        raise Invalid(
            "There is nothing to import: give files (images by class, or one CSV file) or a source such as sklearn:digits."
        )
    view = inputs["files"].view
    paths = [path for path in view.files if not is_litter(path)]
    tables = [path for path in paths if path.lower().endswith((".csv", ".tsv"))]
    if len(tables) > 1 or (tables and len(paths) > 1):
        raise Invalid(f"{len(paths)} files, {len(tables)} of them tables; expected one CSV file alone, or images by class.")
    if tables:
        return table(view, tables[0], config, tick)
    if config.target or config.types:
        raise Invalid("`target` and `types` are for a CSV file; there is none among the files.")
    return image_folder(view)


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
