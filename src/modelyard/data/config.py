"""What an `import-dataset` job is asked for. Read by `work.py` in every process, so nothing here loads a data library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelyard.kinds import Config

TableTask = Literal["tabular-classification", "tabular-regression"]
_SOURCE = r"^(files|sklearn:[a-z_]+)$"
ColumnType = Literal["float", "int", "text"]


class ImportDatasetConfig(Config):
    """`source`: 'sklearn:digits', another bundled set of scikit-learn ('sklearn:iris', …), or 'files': the job's input of that
    role, a folder of images by class (class/name.png) or one CSV file. The rest is for tables: `target` is the column to
    predict; `task` how (None: by the target's type); `types` overrules inferred column types; `delimiter` the sniffed one."""

    source: str = Field(default="files", pattern=_SOURCE, description="'files', or a bundled set such as sklearn:digits")
    target: str | None = None
    task: TableTask | None = None
    types: dict[str, ColumnType] = Field(default_factory=dict)
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
