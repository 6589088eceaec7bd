"""What is wrong with a configuration, in sentences for whoever wrote it: the field, what it is, what was expected.

Whoever validates a `kinds.Config` calls `explain`; pydantic's own messages speak of inputs, patterns and extras. What a field
with a pattern expects is its description.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_LONGEST = 60


def explain(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """All that is wrong, in one line. `what` is what the fields are of: "an option of 'train'"."""
    return "; ".join(_sentence(dict(one), model, what) for one in error.errors())


def _sentence(wrong: Mapping[str, Any], model: type[BaseModel], what: str) -> str:
    path, kind, context = wrong["loc"], wrong["type"], wrong.get("ctx", {})
    name = ".".join(map(str, path))
    if kind == "extra_forbidden":
        return f"'{name}' is not {what}; {_instead(path, model)}"
    if kind == "missing":
        return f"'{name}' is missing"
    if kind == "value_error":
        said = str(context["error"])
        return f"'{name}': {said}" if name else said
    given = f"'{name}' is {_shown(wrong['input'])}" if name else f"It is {_shown(wrong['input'])}"
    return f"{given}; expected {_expected(wrong, _field(path, model))}"


def _expected(wrong: Mapping[str, Any], field: FieldInfo | None) -> str:
    if wrong["type"] == "string_pattern_mismatch" and field is not None and field.description:
        return field.description
    match wrong["type"], wrong.get("ctx", {}):
        case "too_short" | "string_too_short", {"min_length": least}:
            return f"at least {least}"
        case "too_long" | "string_too_long", {"max_length": most}:
            return f"at most {most}"
        case "model_type" | "model_attributes_type" | "dict_type", _:
            return "an object of fields and values"
    said = str(wrong["msg"]).partition(", unable")[0]
    return said.removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")


def _instead(path: Sequence[str | int], model: type[BaseModel]) -> str:
    """The nearest known field beside an unknown one, else all there are."""
    inside = _model(path[:-1], model)
    known = list(inside.model_fields) if inside else []
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    if near:
        return f"did you mean '{'.'.join([*map(str, path[:-1]), near[0]])}'?"
    return f"there are {', '.join(known)}" if known else "there are none"


def _field(path: Sequence[str | int], model: type[BaseModel]) -> FieldInfo | None:
    inside = _model(path[:-1], model) if path else None
    return inside.model_fields.get(str(path[-1])) if inside else None


def _model(path: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model at a path, whose parts may be optional."""
    found: type[BaseModel] | None = model
    for part in path:
        field = found.model_fields.get(str(part)) if found else None
        choices = [field.annotation, *get_args(field.annotation)] if field else []
        found = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
