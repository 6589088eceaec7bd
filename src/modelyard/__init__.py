"""Modelyard: AI models as shared services on machines you own."""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Libraries that phone home unless told not to, some from the moment they are imported: so this comes before any of them, in
# notebooks too, and is inherited by every child.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OPENVINO_TELEMETRY_OPT_OUT": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """`modelyard.Yard`, the SDK: loaded when it is asked for, so that importing a room loads that room alone."""
    if name == "Yard":
        return import_module("modelyard.client").Yard
    raise AttributeError(f"module 'modelyard' has no attribute '{name}'")
