"""Who may do what, and what was used: `key …`, `project …`, `usage`, `whoami`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from modelyard.cli.gate import Confidence, MaxDrop, MaxSliceDrop, More, gate_text, policy
from modelyard.cli.screen import AsJson, Data, confirm, note, open_yard, say, size
from modelyard.cli.table import table
from modelyard.cli.values import rate as a_second
from modelyard.cli.values import seconds
from modelyard.errors import Invalid

Scope = Literal["infer", "write", "admin"]
_RATE = typer.Option(help="Calls it may make, as 100/s or 30/m; none: any number.", show_default=False)
Rate = Annotated[str | None, _RATE]
SaidRate = Annotated[str, _RATE]
Burst = Annotated[
    int | None, typer.Option(help="Calls at once; what comes in a second where not said.", min=1, show_default=False)
]

key = typer.Typer(name="key", no_args_is_help=True, help="Create, list, limit and revoke API keys.")
project = typer.Typer(name="project", no_args_is_help=True, help="Create, list and limit projects.")


@key.command("create")
def create_key(
    scope: Annotated[Scope, typer.Option(help="infer: call models. write: also train and deploy. admin: also keys.")] = "infer",
    name: Annotated[str | None, typer.Option(help="What the key is for.", show_default=False)] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it is good for, as 12h or 30d; for ever where not said.", show_default=False)
    ] = None,
    rate: Rate = None,
    burst: Burst = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key of your project. It is shown once."""
    with open_yard(data) as yard:
        made = yard.create_key(scope, name=name, expires=seconds(expires), rate=a_second(rate), burst=burst)
    if not as_json:
        note(f"Key {made['id']} of scope {made['scope']}; it is not shown again:")
    say(as_json, made, made["key"])


@key.command("list")
def list_keys(data: Data = None, as_json: AsJson = False) -> None:
    """List your project's keys, without their secrets."""
    with open_yard(data) as yard:
        found = yard.keys()
    names = ("id", "scope", "name", "rate", "burst", "created", "expires", "revoked")
    rows = [[one[name] for name in names] for one in found]
    say(as_json, found, table(("key", *names[1:]), rows))


@key.command("quota")
def set_key_quota(
    id: Annotated[str, typer.Argument(help="The key's id, as `modelyard key list` shows it.", show_default=False)],  # noqa: A002
    rate: SaidRate,
    burst: Burst = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Limit the calls a key may make, or lift its limit; it holds within a second."""
    with open_yard(data) as yard:
        changed = yard.set_quota(rate=a_second(rate), burst=burst, key=id)
    say(as_json, changed, _limit(f"key {id}", changed))


@key.command("revoke")
def revoke_key(
    id: Annotated[str, typer.Argument(help="The key's id, as `modelyard key list` shows it.", show_default=False)],  # noqa: A002
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key for good; it is refused everywhere within a second."""
    confirm("Revoke", "revoked", f"key {id}", yes)
    with open_yard(data) as yard:
        yard.revoke_key(id)
    say(as_json, {"id": id, "revoked": True}, f"key {id} revoked")


@project.command("create")
def create_project(
    name: Annotated[str, typer.Argument(help="The project's name.", show_default=False)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Create a project with its first admin key, which is shown once. For administrators of project default."""
    with open_yard(data) as yard:
        made = yard.create_project(name)
    if not as_json:
        note(f"Project {made['name']}; its first admin key is not shown again:")
    say(as_json, made, made["key"]["key"])


@project.command("list")
def list_projects(data: Data = None, as_json: AsJson = False) -> None:
    """List all projects. For administrators of project default."""
    with open_yard(data) as yard:
        found = yard.projects()
    names = ("name", "rate", "burst", "created")
    say(as_json, found, table(("project", *names[1:]), [[one[name] for name in names] for one in found]))


@project.command("quota")
def set_project_quota(
    name: Annotated[str, typer.Argument(help="The project's name.", show_default=False)],
    rate: SaidRate,
    burst: Burst = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Limit the calls a project may make, or lift its limit. Its own administrators may only tighten it."""
    with open_yard(data) as yard:
        changed = yard.set_quota(rate=a_second(rate), burst=burst, project=name)
    say(as_json, changed, _limit(f"project {name}", changed))


@project.command("gate")
def set_project_gate(
    name: Annotated[str, typer.Argument(help="The project's name.", show_default=False)],
    max_accuracy_drop: MaxDrop = None,
    max_slice_drop: MaxSliceDrop = None,
    confidence: Confidence = None,
    more: More = None,
    off: Annotated[bool, typer.Option("--off", help="Lift the gate.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Hold a project's variants against the versions they were made from, before they are deployed; without options, show
    how."""
    wanted = policy(more, max_accuracy_drop=max_accuracy_drop, max_slice_drop=max_slice_drop, confidence=confidence)
    if off and wanted:
        raise Invalid("Say either --off or what the gate is to hold.")
    with open_yard(data) as yard:
        gate = yard.set_project_gate(name, wanted) if off or wanted else yard.project_gate(name)
    say(as_json, {"project": name, "gate": gate}, gate_text(gate, f"project {name}") or f"project {name} has no gate")


def _limit(of: str, changed: Mapping[str, Any]) -> str:
    if changed["rate"] is None:
        return f"{of}: any number of calls"
    return f"{of}: {changed['rate']:g} calls a second, {changed['burst']} at once"


def usage(
    since: Annotated[str | None, typer.Option(help="From this time on, as 2026-01-31T12:00:00Z.", show_default=False)] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show what your project used, by deployment or job, version and key."""
    with open_yard(data) as yard:
        found = yard.usage(since=since)
    rows = [
        (
            *(row[name] for name in ("kind", "subject", "version", "key", "calls", "units", "cpu_seconds")),
            *(size(row[name]) for name in ("bytes_in", "bytes_out")),
            row["errors"],
        )
        for row in found
    ]
    header = ("kind", "subject", "version", "key", "calls", "units", "cpu seconds", "in", "out", "errors")
    say(as_json, found, table(header, rows, "Nothing was used yet.", spare=("kind", "in", "out")))


def whoami(data: Data = None, as_json: AsJson = False) -> None:
    """Show which platform, project, key and scope you speak with."""
    with open_yard(data) as yard:
        body = {"url": yard.profile.url, **yard.whoami()}
    say(as_json, body, "\n".join(f"{name:<8} {value}" for name, value in body.items()))
