"""Plain text: one row a file, a paragraph or a line, in one feature `text`. Called by `importing` for uploaded .txt files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from modelyard.data.config import TextRows
from modelyard.data.datasets import Feature
from modelyard.data.splits import kept_apart
from modelyard.data.writing import Sample, Source, table_content
from modelyard.errors import Invalid
from modelyard.kinds import ArtefactView

ENDING = ".txt"
MOST_FILE_BYTES = 64 << 20  # of a file that is one row, or one paragraph of it


def texts(
    view: ArtefactView, splits: Mapping[str, str | None], rows: TextRows, origin: dict[str, str], tick: Callable[[int], None]
) -> Source:
    """The files of `splits`, which says what split each is of. Raises `Invalid` naming the first that is no UTF-8 text."""
    sizes = view.files  # asked for once: a view may walk its folder each time
    for path in splits:
        if rows == "document" and sizes[path] > MOST_FILE_BYTES:
            raise Invalid(
                f"'{path}' has {sizes[path]:,} bytes; one row may have {MOST_FILE_BYTES:,}: import it by paragraphs or lines. "
                "Nothing was imported."
            )
    count = 0
    for count, _ in enumerate(_samples(view, splits, rows), start=1):
        tick(count)
    features = {"text": Feature(type="text")}
    return Source(features, None, "text-generation", count, _samples(view, splits, rows), origin, kept_apart(splits.values()))


def _samples(view: ArtefactView, splits: Mapping[str, str | None], rows: TextRows) -> Iterator[Sample]:
    for path, split in splits.items():
        empty = True
        for where, text in _pieces(view, path, rows):
            empty = False
            values = {"text": text}
            yield Sample(table_content(values, None), values, where, split)
        if empty:
            raise Invalid(f"'{path}' has no text; leave it out. Nothing was imported.")


def _pieces(view: ArtefactView, path: str, rows: TextRows) -> Iterator[tuple[str, str]]:
    """Rows of a file with their places: a document as it stands, paragraphs and lines without what surrounds them."""
    if rows == "document":
        text = "".join(text for _, text in _lines(view, path))
        return iter([(f"'{path}'", text)] if text.strip() else [])
    if rows == "line":
        return ((f"'{path}', line {line}", text.strip()) for line, text in _lines(view, path) if text.strip())
    return _paragraphs(view, path)


def _paragraphs(view: ArtefactView, path: str) -> Iterator[tuple[str, str]]:
    """Lines up to the next blank one."""
    held: list[str] = []
    start = 0
    for line, text in _lines(view, path):
        if text.strip():
            start = start if held else line
            held.append(text)
        elif held:
            yield f"'{path}', line {start}", "".join(held).strip()
            held = []
    if held:
        yield f"'{path}', line {start}", "".join(held).strip()


def _lines(view: ArtefactView, path: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends, which are made one character each."""
    with view.open(path) as file:
        for line, raw in enumerate(iter(lambda: file.readline(MOST_FILE_BYTES + 1), b""), start=1):
            if len(raw) > MOST_FILE_BYTES:
                raise Invalid(f"'{path}', line {line}: longer than {MOST_FILE_BYTES:,} bytes. Nothing was imported.")
            try:
                yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8").replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                raise Invalid(f"'{path}', line {line}: byte {error.start} is not UTF-8 text. Nothing was imported.") from error
