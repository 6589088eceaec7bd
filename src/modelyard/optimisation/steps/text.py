"""A step as people write it, 'prune:channels=0.5,finetune=3' or 'quantize:static-int8', and back.

A value is JSON where it can be, else a word: 'distil:student={"width":12}' and 'distil:student.width=12' say the same, as do
'quantize:float_layers=["head","stem"]' and 'quantize:float_layers=head+stem'.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, get_origin

from pydantic import ValidationError

from modelyard.errors import Invalid
from modelyard.fields import explain
from modelyard.optimisation.steps.config import SHORT, STEPS

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "null", "NaN", "Infinity"})


def parse(text: str) -> Any:
    """The step that `text` writes. Raises `Invalid`, naming what there is."""
    name, _, rest = text.strip().partition(":")
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(STEPS)}"
        raise Invalid(f"'{name[:60]}' is no step of optimisation; {hint}; an example is prune:channels=0.5,finetune=3.")
    model, given = STEPS[name], dict[str, Any]()
    if rest and model.model_fields.keys() == {"step"}:
        raise Invalid(f"'{text}': '{name}' has no options; write it alone.")
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = _short(text, name, part, given), part
        _put(given, key.strip(), _value(model, key.strip(), value.strip()), text)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise Invalid(f"'{text}': {explain(error, model, f'an option of {name!r}')}.") from error


def show(step: Any) -> str:
    """The shortest text that `parse` makes this step of."""
    name, options = step.step, []
    for key, field in type(step).model_fields.items():
        value = getattr(step, key)
        if key == "step" or (value == field.get_default(call_default_factory=True) and key != SHORT.get(name)):
            continue
        options.append(_shown(value) if key == SHORT.get(name) else f"{key}={_shown(value)}")
    return f"{name}:{','.join(options)}" if options else name


def _short(text: str, name: str, part: str, given: dict[str, Any]) -> str:
    """The option whose name may be left out."""
    key = SHORT.get(name)
    if key is None or given:
        options = ", ".join(option for option in STEPS[name].model_fields if option != "step")
        raise Invalid(f"'{text}': '{part}' is not OPTION=VALUE; the options of '{name}' are {options}.")
    return key


def _put(tree: dict[str, Any], path: str, value: Any, text: str) -> None:
    *above, last = path.split(".")
    at: Any = tree
    for part in above:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise Invalid(f"'{text}': '{part}' has a value already, so it cannot have parts.")
    if last in at:
        raise Invalid(f"'{text}': '{path}' is said twice.")
    at[last] = value


def _value(model: Any, key: str, text: str) -> Any:
    """JSON, a list of words where the option is a list, or a word."""
    try:
        return json.loads(text)
    except ValueError:
        field = model.model_fields.get(key)
        words = field is not None and get_origin(field.annotation) is tuple
        return text.split("+") if words else text


def _shown(value: Any) -> str:
    if isinstance(value, str) and _is_word(value):
        return value
    if isinstance(value, tuple):
        plain = bool(value) and all(_is_word(part) for part in value)
        return "+".join(value) if plain else json.dumps(value, separators=(",", ":"))
    return json.dumps(value, separators=(",", ":"))


def _is_word(text: str) -> bool:
    return bool(_PLAIN.fullmatch(text)) and text not in _WORDS


def _parts(text: str) -> Iterator[str]:
    """What stands between the commas that are outside of quotes, brackets and braces."""
    depth, quoted, start, escaped = 0, False, 0, False
    for position, sign in enumerate(text):
        if quoted:
            quoted = escaped or sign != '"'
            escaped = sign == "\\" and not escaped
        elif sign == '"':
            quoted = True
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    if text[start:].strip() or start:
        yield text[start:]
