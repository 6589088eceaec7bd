"""What an `import-dataset` job is asked for. Read by `work.py` in every process, so nothing here loads a data library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelyard.kinds import Config

Writes = Literal["automatic-speech-recognition", "summarization", "text-generation", "translation"]
Task = Literal["tabular-classification", "tabular-regression", "text-classification", "image-classification", Writes]
ColumnType = Literal["float", "int", "text"]
TextRows = Literal["document", "paragraph", "line"]
_SOURCE = r"^(files|sklearn:[a-z_]+|hf:[A-Za-z0-9][A-Za-z0-9._/@-]*)$"


class ImportDatasetConfig(Config):
    """`source`: 'sklearn:digits', another bundled set of scikit-learn ('sklearn:iris', …), or 'files': the job's input of that
    role (docs/data.md says which files); 'hf:org/name@commit' says that these files were fetched from there. For files with
    columns: `target` is the one to predict; `task` how (None: by the target's type); `types` overrules inferred types;
    `columns` are all that is read (None: every one). `delimiter`: CSV's, sniffed. `rows`: what of plain text makes a row."""

    source: str = Field(default="files", pattern=_SOURCE, description="'files', or a bundled set such as sklearn:digits")
    target: str | None = None
    task: Task | None = None
    types: dict[str, ColumnType] = Field(default_factory=dict)
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    rows: TextRows = "document"
