"""Modelyard: AI models as shared services on machines you own."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`modelyard.Yard`, the SDK: loaded when it is asked for, so that importing a room loads that room alone."""
    if name == "Yard":
        return import_module("modelyard.client").Yard
    raise AttributeError(f"module 'modelyard' has no attribute '{name}'")
