"""What makes a submission a job: every part of it is checked, and every input pinned, before anything is written.

`service.submit` calls it. It decides from the kinds, the catalogue and the size of the cluster; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from pydantic import ValidationError

from modelyard import fields
from modelyard.catalogue import service as catalogue
from modelyard.db import Session
from modelyard.errors import Forbidden, Invalid
from modelyard.jobs.packing import slots_on
from modelyard.jobs.reasons import too_large
from modelyard.jobs.types import Amount, Node, Resolved, Submission, Target
from modelyard.kinds import JobKind
from modelyard.tenancy.types import DEFAULT_PROJECT, Principal, Scope

_PREFIXES = "'dataset:NAME@VERSION', 'model:NAME@VERSION' or 'artefact:HASH'"


def check_ranks(kind: JobKind, ranks: int, each: Amount, nodes: Sequence[Node]) -> None:
    """Raises `Invalid` unless the kind may have that many ranks and the cluster could ever run them."""
    if ranks > 1 and not kind.gang:
        raise Invalid(f"Jobs of kind '{kind.name}' run as one rank, not {ranks}.")
    most = sum(slots_on(node.room, each) for node in nodes)
    if ranks > most:
        less = f"at most {most} rank{'s' * (most > 1)}" if most else "less for each rank"
        raise Invalid(f"A gang of {ranks} {too_large(ranks, each, nodes)}. Ask for {less}.")


def check_priority(principal: Principal, priority: int) -> None:
    """Raises `Forbidden` for a priority that is not for everybody: it goes before all projects' shares."""
    if priority > 0 and (principal.scope < Scope.admin or principal.project != DEFAULT_PROJECT):
        who = f"administrators of the project '{DEFAULT_PROJECT}'"
        raise Forbidden(f"A priority above 0 goes before every project's share and is for {who}; ask for 0 or less.")


def check_target(kind: JobKind, target: Target | None, *, child: bool) -> None:
    """Raises `Invalid` unless the target is what the kind makes."""
    if kind.target is None or (target is None and child):
        return
    if target is None:
        raise Invalid(f"A job of kind '{kind.name}' makes a {kind.target}: name it as \"target\".")
    if target.kind != kind.target:
        raise Invalid(f"A job of kind '{kind.name}' makes a {kind.target}, not a {target.kind}.")


def check_config(kind: JobKind, config: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The whole configuration, defaults filled in, as JSON. Raises `Invalid` naming every wrong field and what it should be,
    and where it does not go with so many ranks."""
    try:
        whole = kind.config.model_validate(config)
    except ValidationError as error:
        raise Invalid(fields.explain(error, kind.config, f"an option of '{kind.name}'")) from error
    whole.check_ranks(ranks)
    return whole.model_dump(mode="json")


def check_roles(kind: JobKind, given: Collection[str]) -> None:
    """Raises `Invalid` unless every required role is given and every given one known."""
    known = (*kind.inputs, *kind.optional)
    if missing := [role for role in kind.inputs if role not in given]:
        raise Invalid(f"A job of kind '{kind.name}' needs the input '{missing[0]}'.")
    if unknown := [role for role in given if role not in known]:
        there = ", ".join(f"'{role}'" for role in known) or "no inputs"
        raise Invalid(f"A job of kind '{kind.name}' has no input '{unknown[0]}'; it takes {there}.")


def resolve(session: Session, project: str, role: str, reference: str) -> Resolved:
    """Pin one input. Raises `NotFound` for what does not exist in the project, `Invalid` for what is no reference."""
    kind, _, name = reference.partition(":")
    if kind in ("dataset", "model") and name:
        version = catalogue.resolve(session, project, cast(Any, kind), name)
        return Resolved(role, version.kind, version.name, version.number, version.artefact, version.metadata)
    if kind == "artefact" and name:
        catalogue.check_artefact(session, project, name)
        return Resolved(role, "artefact", None, None, name, {})
    raise Invalid(f"The input '{role}' is '{reference[:80]}': expected {_PREFIXES}.")


def pinned(resolved: Resolved) -> str:
    """The reference of an input with its kind before it: 'dataset:digits@1'."""
    return resolved.reference if resolved.kind == "artefact" else f"{resolved.kind}:{resolved.reference}"


def check(session: Session, project: str, asked: Submission, kind: JobKind, *, child: bool) -> tuple[Resolved, ...]:
    """What is left to check once it is known to fit; the inputs as pinned."""
    check_target(kind, asked.target, child=child)
    check_roles(kind, asked.inputs)
    resolved = tuple(resolve(session, project, role, reference) for role, reference in asked.inputs.items())
    if kind.check is not None:
        kind.check({one.role: one for one in resolved})
    return resolved
