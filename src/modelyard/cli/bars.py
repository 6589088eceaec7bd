"""The progress bars themselves; apart, because rich's cost more to load than all the rest of the command line."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def progress() -> Progress:
    """Bars on stderr with a title, how far, how long, and the newest figures."""
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("[cyan]{task.fields[figures]}"),
        console=Console(stderr=True),
    )
