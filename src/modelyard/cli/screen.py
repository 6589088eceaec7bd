"""What commands say. Results go to stdout: plain text, or with `--json` exactly one JSON document; all else goes to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from modelyard.plugins import load

if TYPE_CHECKING:
    from modelyard.client import Yard

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Data folder of the platform whose profile to use [MODELYARD_DATA, ~/.modelyard].", metavar="DIR"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once; print the job or state instead of the result.")]

INTERRUPTED = 130
_BLOCKS = "▁▂▃▄▅▆▇█"


class Left(Exception):
    """A person left a command before its end: detached from a job, or said no. `message` says what that means."""

    def __init__(self, code: str, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.code, self.message, self.exit_code = code, message, exit_code


def open_yard(data: Path | None) -> Yard:
    """The client of the platform that flag, environment and profile name."""
    yard: Yard = load("modelyard.client:Yard")(data=data)
    return yard


def say(as_json: bool, body: Any, text: str) -> None:
    """A command's result: `body` as JSON, or `text`."""
    typer.echo(dumps(body) if as_json else text)


def dumps(body: Any) -> str:
    """Strict JSON: what it has no number for (NaN, infinities) is null."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(body), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(text: str) -> None:
    """Something beside the result, on stderr."""
    typer.echo(text, err=True)


def complain(as_json: bool, code: str, message: str) -> None:
    """An error: one line on stderr, or `{"error":{"code","message"}}` on stdout."""
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False))
    else:
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)


def size(count: int | float) -> str:
    """Bytes as people read them: '1.5 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve in one line of blocks; longer series keep their shape in `width` characters."""
    if len(values) > width:
        values = [values[int(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * 7)] if value in finite else " " for value in values)


def describe(version: Mapping[str, Any]) -> str:
    """A version in one line: 'digits@1 · image-classification · 3f2a91c04d21'."""
    parts = [version["reference"], version.get("task"), str(version["artefact"])[:12]]
    return " · ".join(str(part) for part in parts if part)


def confirm(verb: str, done: str, what: str, sure: bool) -> None:
    """Ask before something is lost: `confirm("Delete", "deleted", "model 'm'", yes)`.

    Raises `Left` on no, and a usage error where there is no terminal to ask at: silence is no consent.
    """
    if sure:
        return
    if not sys.stdin.isatty():
        raise TyperException(f"There is no terminal to ask at: say --yes to {verb.lower()} {what}.")
    typer.echo(f"{verb} {what}? [y/N] ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Left("declined", f"Nothing was {done}.", 1)
