"""Registries: names to import paths. What is behind a name is loaded on first use, so that listing engines,
recipes or job kinds costs nothing. Third parties add names through entry points of the registry's group.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from modelyard.errors import Invalid, not_found

T = TypeVar("T")


def load(path: str) -> Any:
    """The object at 'package.module:attribute'. Raises `Invalid`, naming the library, where an extra is not installed."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "?").partition(".")[0]
        if missing == "modelyard":
            raise
        raise Invalid(
            f"'{path}' needs the library '{missing}', which is not installed: pip install 'modelyard[all]'."
        ) from error


class Registry(Generic[T]):
    """Names of one kind of thing ('engine', 'recipe', …), each an import path or, in tests, the object itself."""

    def __init__(self, what: str, builtin: Mapping[str, str]) -> None:
        self.what = what
        self._paths: dict[str, str] = dict(builtin)
        self._loaded: dict[str, T] = {}

    def names(self) -> list[str]:
        return sorted({*self._paths, *self._loaded, *self._points})

    def __contains__(self, name: str) -> bool:
        return name in self._paths or name in self._loaded or name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def path(self, name: str) -> str:
        """The import path of a name, without loading it. Raises `NotFound` with the names that exist."""
        if name in self._paths:
            return self._paths[name]
        if name in self._points:
            return self._points[name]
        raise not_found(self.what, name, self.names())

    def get(self, name: str) -> T:
        """The thing itself, loaded on first use."""
        if name not in self._loaded:
            self._loaded[name] = cast(T, load(self.path(name)))
        return self._loaded[name]

    def add(self, name: str, thing: T) -> None:
        """Register an object in this process only (tests, notebooks)."""
        self._loaded[name] = thing

    @cached_property
    def _points(self) -> Mapping[str, str]:
        """What installed packages add. Read once, since it opens a file of each; and late, since it costs a short command a
        tenth of its time, and most look up no name."""
        found = load("importlib.metadata:entry_points")(group=f"modelyard.{self.what.replace(' ', '_')}s")
        return {point.name: str(point.value) for point in found}
