"""The line that calls a deployment with nothing but curl. It works as printed and holds no key: it reads it where it lies."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.client import Profile

# A grey PNG of 8 × 8 pixels, in base64.
TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNogAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="
# More values than this make no line to paste.
_MOST_VALUES = 1024
_READ_KEY = "$(grep -o 'my_[0-9a-f]*_[0-9a-f]*' {file})"


def curl_line(profile: Profile, deployment: Mapping[str, Any]) -> str:
    """A call with a sample where the shapes are known, else a look at what the deployment takes."""
    key = _READ_KEY.format(file=shlex.quote(str(profile.file))) if profile.file else "$MODELYARD_KEY"
    address = f"{profile.url}/v2/models/{deployment['name']}"
    body = sample(deployment)
    if body is None:
        return f'curl -H "Authorization: Bearer {key}" {shlex.quote(address)}'
    text = shlex.quote(json.dumps(body, separators=(",", ":")))
    return (
        f'curl -H "Authorization: Bearer {key}" -H "Content-Type: application/json" {shlex.quote(address + "/infer")} -d {text}'
    )


def sample(deployment: Mapping[str, Any]) -> dict[str, Any] | None:
    """A valid infer request of one row: a tiny image, or zeros. None where a shape is not known, or too large to print."""
    inputs = []
    for tensor in deployment["inputs"]:
        shape, datatype = tensor["shape"], tensor["datatype"]
        count = prod(_one(shape))
        # [-1] alone is a batch of scalars for a named column or an image, but stands for "unknown" where a module said nothing.
        unknown = shape == [-1] and datatype != "BYTES" and not deployment["task"].startswith("tabular")
        if unknown or count > _MOST_VALUES or datatype in ("FP16", "BF16"):
            return None
        inputs.append(
            {"name": tensor["name"], "shape": _one(shape), "datatype": datatype, "data": _values(deployment, datatype, count)}
        )
    return {"inputs": inputs} if inputs else None


def _one(shape: list[int]) -> list[int]:
    return [1 if dim < 0 else dim for dim in shape]


def _values(deployment: Mapping[str, Any], datatype: str, count: int) -> list[Any]:
    if datatype == "BYTES":
        return [TINY_PNG if deployment["task"].startswith("image") else ""] * count
    return [False if datatype == "BOOL" else 0] * count
