"""The progress bars themselves; apart, because rich's cost more to load than all the rest of the command line."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text


class Bars:
    """Bars on stderr, one a title, with the newest figures on a line below them."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._live = Live(console=console, refresh_per_second=10)
        self._live.update(self._progress)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def bar(self, title: str, amount: str, done: float = 0, total: float | None = None) -> None:
        """Show how far `title` is; a bar without a total only says that something goes on."""
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total, amount=amount)
        self._progress.update(self._tasks[title], completed=done, total=total, amount=amount)

    def figures(self, line: str) -> None:
        self._live.update(Group(self._progress, Text.from_ansi(f"  {line}", style="cyan")))

    def line(self, text: str) -> None:
        """A line above the bars, which stays."""
        self._live.console.print(text, style="dim", markup=False, highlight=False)
