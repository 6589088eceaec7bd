"""The walks in docs/architecture.md name files that exist, and every room has its page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "modelyard"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
# Each step of a walk: the first file reaches the second by import, by name in a registry, or as a process it starts.
WALKS = PAGE.split("## The walks")[1].split("### ")[1:]


def test_there_are_three_walks_over_files_that_exist() -> None:
    assert [walk.split("\n")[0] for walk in WALKS] == ["Train", "Deploy", "Infer"]
    for walk in WALKS:
        files = re.findall(r"`([a-z_/]+\.py)`", walk)
        assert len(files) >= 6
        assert not [name for name in files if not (SOURCE / name).exists()]


def test_every_room_has_a_page() -> None:
    rooms = [p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists() and p.name != "migrations"]
    assert not [room for room in rooms if not (ROOT / "docs" / f"{room}.md").exists()]


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
