"""What can be typed, set, read or met is documented: commands, settings, error codes and metrics, each on its page."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from modelyard import errors
from modelyard.cli.edge import assemble
from modelyard.errors import ModelyardError
from modelyard.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
METRICS = {f"{kind}{family}" for kind in ("Counter", "Gauge", "Histogram", "Summary") for family in ("", "MetricFamily")}


def rows(page: str) -> set[str]:
    """What a page's tables are about: the code in the first column."""
    cells = [line.split("|")[1] for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group below a group of typer's, as it is typed."""
    for name, command in group.commands.items():
        yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def metrics() -> dict[str, str]:
    """Every metric that the source makes, by the name it is scraped under, with the file that makes it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        found |= dict.fromkeys(metrics_in(path.read_text(), path.name), path.name)
    return found


def metrics_in(source: str, file: str) -> Iterator[str]:
    """The metrics that a file makes. Their names must be literals: another could not be held against the page."""
    tree = ast.parse(source)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "collections"]
    others = {alias.asname or alias.name for node in imported for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        kind = called.rpartition(".")[2]
        if kind not in METRICS or called in others | {"collections.Counter"}:
            continue
        name = next(iter([*node.args, *(word.value for word in node.keywords if word.arg == "name")]), None)
        text = name.value if isinstance(name, ast.Constant) else None
        assert isinstance(text, str), f"{file}:{node.lineno}: the name of this metric is no literal"
        yield f"{text}_total" if kind.startswith("Counter") and not text.endswith("_total") else text


def test_every_setting_has_a_row() -> None:
    assert not sorted(set(Settings.model_fields) - rows("settings.md"))


def test_no_setting_is_documented_that_is_gone() -> None:
    assert not sorted(rows("settings.md") - set(Settings.model_fields))


def test_every_error_code_has_a_row() -> None:
    codes = {cls.code for cls in errors._tree(ModelyardError)}
    assert rows("errors.md") >= codes
    assert not {word for word in rows("errors.md") if re.fullmatch(r"[a-z_]+", word)} - codes


def test_every_command_and_group_is_documented() -> None:
    """A command by its words in a table; a group by its commands."""
    known = [row.split(" ") for row in rows("cli.md")]
    typed = [name.split(" ") for name, _ in commands(typer.main.get_command(assemble()))]
    missing = [" ".join(name) for name in typed if not any(row[: len(name)] == name for row in known)]
    assert not missing, f"docs/cli.md has no row of {', '.join(missing)}"


def test_every_option_is_documented() -> None:
    page = (DOCS / "cli.md").read_text()
    options = [(name, p.opts[0]) for name, command in commands(typer.main.get_command(assemble())) for p in command.params]
    missing = [" ".join(pair) for pair in options if pair[1].startswith("--") and pair[1] not in page]
    assert not missing, f"docs/cli.md does not say {', '.join(missing)}"


def typed_lines() -> list[tuple[str, list[str]]]:
    """Every line of a shell block that types `modelyard`, by its page, lines that go on joined."""
    found = []
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        for block in re.findall(r"^```(?:bash|console)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
            found += [(page.name, words[1:]) for words in lines if words[:1] == ["modelyard"]]
    return found


@pytest.mark.parametrize(("page", "words"), typed_lines(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_the_command_line_takes_what_a_page_types(page: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(assemble())
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: there is no {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))  # raises where an option or argument is none


@pytest.mark.parametrize("page", ["fields", "kinds", "plugins", "telemetry", "tensors", "testing"])
def test_the_examples_of_a_room_that_is_one_module_run(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_metric_has_a_row() -> None:
    made = metrics()
    assert made, "no metric was found: has the way they are made changed?"
    assert rows("metrics.md") == set(made)


@pytest.mark.parametrize(
    "given", ["name, 'about'", "f'modelyard_{x}', 'about'", "'modelyard_' + x, 'about'", "*all", "name=x", "**all"]
)
def test_a_metric_whose_name_is_no_literal_is_found(given: str) -> None:
    made = "from prometheus_client import Counter\nCounter({})"
    assert list(metrics_in(made.format("'modelyard_things', 'about'"), "here.py")) == ["modelyard_things_total"]
    assert not list(metrics_in("from collections import Counter\nCounter(words)", "here.py"))
    with pytest.raises(AssertionError, match=r"here\.py:2"):
        list(metrics_in(made.format(given), "here.py"))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", (DOCS / page).read_text())
    assert not [target for target in targets if not (DOCS / target).exists()]
