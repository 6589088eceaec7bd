"""The tree in the docstring of `errors` is the tree in the code, and every code is documented."""

from __future__ import annotations

from pathlib import Path

from modelyard import errors
from modelyard.errors import ModelyardError

ROOT = Path(__file__).parents[2]


def lines(cls: type[ModelyardError], prefix: str = "") -> list[str]:
    out: list[str] = []
    children = cls.__subclasses__()
    for i, child in enumerate(children):
        last = i == len(children) - 1
        out.append(f"{prefix}{'└── ' if last else '├── '}{child.__name__}")
        out += lines(child, prefix + ("    " if last else "│   "))
    return out


def drawn() -> list[str]:
    text = (errors.__doc__ or "").split("ModelyardError\n", 1)[1]
    return [line.strip("\n").removeprefix("    ") for line in text.splitlines() if "──" in line]


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn() == lines(ModelyardError)


def test_codes_are_unique_and_documented() -> None:
    classes = list(errors._tree(ModelyardError))
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)
    page = (ROOT / "docs" / "errors.md").read_text()
    assert not [code for code in codes if f"`{code}`" not in page]
