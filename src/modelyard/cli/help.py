"""How `--help` names what a command takes: arguments and values in capitals, nothing beside a flag.

Applied by `edge` to every group; typer's own way shows Python's types.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return [_named(parameter) for parameter in super().get_params(ctx)]


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return [_named(parameter) for parameter in super().get_params(ctx)]


def plain(group: typer.Typer) -> None:
    """Have a group and its commands show their help so."""
    group.info.cls = Group
    for command in group.registered_commands:
        command.cls = Command


def _named(parameter: Any) -> Any:
    if isinstance(parameter, TyperArgument | TyperOption) and parameter.metavar is None:
        parameter.metavar = _metavar(parameter)
    return parameter


def _metavar(parameter: TyperArgument | TyperOption) -> str:
    if isinstance(parameter, TyperArgument):
        return str(parameter.name).upper()
    choices = getattr(parameter.type, "choices", None)
    if choices:
        return "|".join(map(str, choices))
    kind = parameter.type.name.partition(" ")[0]  # "int" and "int range" alike
    return {"boolean": "", "int": "N", "float": "NUMBER"}.get(kind, str(parameter.name).upper())
