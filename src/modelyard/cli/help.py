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
    kind = parameter.type_descriptor
    if isinstance(parameter, TyperArgument):
        return str(parameter.name).upper()
    if kind.is_choice:
        return "|".join(map(str, kind.choices or ()))
    return {"bool": "", "int": "N", "float": "NUMBER"}.get(parameter.bare_type(), str(parameter.name).upper())
