"""Names lead to things, which are loaded when first asked for."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from modelyard.errors import Invalid, NotFound
from modelyard.plugins import Registry, load


@pytest.fixture
def module(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a_plugin_of_these_tests.py").write_text("THING = object()\n")
    (tmp_path / "a_plugin_that_lacks.py").write_text("import a_library_nobody_has.deep\n")
    (tmp_path / "a_plugin_that_is_ours.py").write_text("import modelyard.no_such_room\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "a_plugin_of_these_tests"
    for name in [name for name in sys.modules if name.startswith("a_plugin_")]:
        del sys.modules[name]


def test_load(module: str):
    assert load(f"{module}:THING") is sys.modules[module].THING


def test_a_missing_library_is_named(module: str):
    with pytest.raises(Invalid, match=r"'a_library_nobody_has'.*pip install 'modelyard\[all\]'"):
        load("a_plugin_that_lacks:THING")


def test_a_missing_module_of_our_own_is_a_bug(module: str):
    with pytest.raises(ModuleNotFoundError):
        load("a_plugin_that_is_ours:THING")


def test_nothing_is_loaded_before_it_is_asked_for(module: str):
    registry: Registry[object] = Registry("thing", {"one": f"{module}:THING", "lacking": "a_plugin_that_lacks:THING"})
    assert registry.names() == list(registry) == ["lacking", "one"]
    assert registry.path("one") == f"{module}:THING"
    assert module not in sys.modules
    assert registry.get("one") is registry.get("one")
    assert module in sys.modules


def test_an_unknown_name_is_told_what_there_is():
    registry: Registry[object] = Registry("engine", {"onnx": "x:y", "torch": "x:z"})
    with pytest.raises(NotFound, match=r"No engine 'onx'\. Did you mean 'onnx'.*'onnx', 'torch'"):
        registry.get("onx")


def test_objects_can_be_added_in_this_process():
    registry: Registry[object] = Registry("engine", {"onnx": "x:y"})
    fake = object()
    registry.add("fake", fake)
    registry.add("onnx", fake)
    assert registry.get("fake") is registry.get("onnx") is fake
    assert registry.names() == ["fake", "onnx"]


def test_third_parties_add_names_but_do_not_replace_ours(module: str, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("theirs", f"{module}:THING", group), EntryPoint("ours", "evil:THING", group)]

    monkeypatch.setattr("importlib.metadata.entry_points", points)
    registry: Registry[object] = Registry("job kind", {"ours": f"{module}:THING"})
    assert registry.names() == ["ours", "theirs"]
    assert registry.get("theirs") is registry.get("ours")
    assert set(asked) == {"modelyard.job_kinds"}
