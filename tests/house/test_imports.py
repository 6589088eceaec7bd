"""No import cycles anywhere, no import inside a function that hides one, and one door for each vendor."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

SOURCE = Path(__file__).parents[2] / "src" / "modelyard"
GRAPH = grimp.build_graph("modelyard", include_external_packages=True, cache_dir=None)
# Libraries that one file of each use keeps to itself: what they might be replaced by is decided there.
DOORS = {
    "grpc": {"modelyard.serving.grpc.server"},
    "matplotlib": {"modelyard.training.sweep.picture"},
    "obstore": {"modelyard.storage.stores"},
    "optuna": {"modelyard.training.sweep.search"},
    "ray": {"modelyard.jobs.ray.cluster"},
}


def test_no_module_is_in_a_cycle() -> None:
    state: dict[str, str] = {}

    def visit(module: str, path: list[str]) -> None:
        state[module] = "open"
        for imported in sorted(GRAPH.find_modules_directly_imported_by(module)):
            if imported == "modelyard":
                continue  # the package itself holds the version and loads the client late
            assert state.get(imported) != "open", f"a cycle: {' → '.join([*path, module, imported])}"
            if imported not in state:
                visit(imported, [*path, module])
        state[module] = "done"

    for module in sorted(GRAPH.modules):
        if module not in state:
            visit(module, [])


@pytest.mark.parametrize("vendor", sorted(DOORS))
def test_each_vendor_has_one_door(vendor: str) -> None:
    """Imports inside functions count."""
    importers = GRAPH.find_modules_that_directly_import(vendor)
    assert importers == DOORS[vendor]


def test_no_import_of_ours_inside_a_function() -> None:
    for path in SOURCE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not [n for n in names if n.startswith("modelyard")], f"{path.name}:{function.name} imports {names}"
