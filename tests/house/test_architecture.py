"""The walks in docs/architecture.md go where the code goes, edge by edge, and every room has its page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "modelyard"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
GRAPH = grimp.build_graph("modelyard")
WALKS = PAGE.split("## The walks")[1].split("### ")[1:]
FILE = r"`([a-z_/]+\.py)`"


def module(file: str) -> str:
    return "modelyard." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def names(left: str) -> set[str]:
    """The modules whose import paths ('package.module:attribute') a module's text holds."""
    path = SOURCE / f"{left.removeprefix('modelyard.').replace('.', '/')}.py"
    text = (path if path.exists() else path.with_suffix("") / "__init__.py").read_text()
    words = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {word.partition(":")[0] for word in words if ":" in word}


def reaches(left: str, right: str) -> bool:
    """Whether a module imports another, itself or from its package, or names its import path."""
    package = right.rpartition(".")[0]
    direct = GRAPH.find_modules_directly_imported_by(left)
    through = package in direct and right in GRAPH.find_modules_directly_imported_by(package)
    return right in direct or through or right in names(left)


def edges(walk: str) -> Iterator[tuple[str, str, str]]:
    """(file, arrow, file) of every step; what is in brackets is a step from the file before them."""
    for aside in re.finditer(rf"{FILE} \(([^)]*)\)", walk):
        yield from ((aside[1], "→", used) for used in re.findall(FILE, aside[2]))
    chain = re.sub(r" \([^)]*\)", "", walk)
    for step in re.finditer(rf"(?={FILE} ([→⇢⇒…]) {FILE})", chain):
        yield step[1], step[2], step[3]


EDGES = sorted({edge for walk in WALKS for edge in edges(walk)})


def test_there_are_three_walks_over_files_that_exist() -> None:
    assert [walk.split("\n")[0] for walk in WALKS] == ["Train", "Deploy", "Infer"]
    for walk in WALKS:
        files = re.findall(FILE, walk)
        assert len(files) >= 6
        assert not [name for name in files if not (SOURCE / name).exists()]


def test_no_arrow_and_no_file_is_overlooked() -> None:
    for walk in WALKS:
        chain = re.sub(r" \([^)]*\)", "", walk)
        assert len(re.findall(r"[→⇢⇒…]", chain)) == len(re.findall(rf"(?={FILE} [→⇢⇒…] {FILE})", chain))
        assert not set(re.findall(FILE, walk)) - {file for left, _, right in edges(walk) for file in (left, right)}


@pytest.mark.parametrize(("left", "right"), [(left, right) for left, arrow, right in EDGES if arrow == "→"])
def test_what_an_arrow_joins_is_joined_by_an_import(left: str, right: str) -> None:
    assert reaches(module(left), module(right)), f"{left} neither imports {right} nor names its import path"


@pytest.mark.parametrize(("left", "right"), [(left, right) for left, arrow, right in EDGES if arrow == "⇢"])
def test_what_app_hands_over_it_imports_with_whom_it_hands_it_to(left: str, right: str) -> None:
    assert not reaches(module(left), module(right)), f"{left} imports {right} itself: write →"
    wiring = [name for name in GRAPH.modules if name.startswith("modelyard.app.")]
    assert any(_knows(name, module(left)) and reaches(name, module(right)) for name in wiring)


def _knows(wiring: str, left: str) -> bool:
    """Whether a module of `app` makes the left one: itself, or by a module of the same room that does."""
    room = left.rpartition(".")[0]
    makers = {name for name in GRAPH.find_modules_directly_imported_by(wiring) if name.startswith(room)}
    return left in makers or any(reaches(maker, left) for maker in makers)


def test_every_room_has_a_page() -> None:
    """Folders and single modules alike; migrations are told of with the database."""
    rooms = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    rooms -= {"__init__", "__main__", "migrations"}
    assert {"kinds", "testing", "serving"} <= rooms
    assert not sorted(room for room in rooms if not (ROOT / "docs" / f"{room}.md").exists())


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_names_this_machine() -> None:
    names = re.compile(r"/work/|/root/|\.\./shared|/opt/(wheels|pypi)")
    kept = [p for folder in ("src", "docs", "tests", "examples", "demo", "benchmarks") for p in (ROOT / folder).rglob("*")]
    texts = [
        p
        for p in kept
        if p.suffix in {".py", ".md", ".toml", ".json", ".yaml"} and p != Path(__file__) and "yard" not in p.parts
    ]
    assert not [p for p in texts if names.search(p.read_text())]
