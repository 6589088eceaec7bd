"""Datasets and models: `dataset …`, `model …`, and `delete`, which finds out which of them is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modelyard.cli.jobs import finish, started
from modelyard.cli.live import Live
from modelyard.cli.receipt import tree_text
from modelyard.cli.screen import AsJson, Data, NoWait, confirm, describe, open_yard, say
from modelyard.cli.table import table
from modelyard.errors import Invalid, not_found

Kind = Literal["dataset", "model"]
Name = Annotated[str, typer.Argument(help="A name; what exists becomes its newest version.", show_default=False)]
Reference = Annotated[str, typer.Argument(help="A version, as name, name@3 or name@alias.", show_default=False)]
Deleted = Annotated[str, typer.Argument(help="A name, or one version as name@3.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

dataset = typer.Typer(name="dataset", no_args_is_help=True, help="Import, list, show and delete datasets.")
model = typer.Typer(name="model", no_args_is_help=True, help="Import, list, show, fetch, alias and delete models.")


@dataset.command("import")
def import_dataset(
    name: Name,
    source: Annotated[
        str, typer.Option("--from", help="A file or folder (CSV, JSONL, Parquet, text, images), sklearn:digits, hf:org/name.")
    ],
    target: Annotated[str | None, typer.Option(help="The column to predict, in a table.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="As tabular-regression; by the target where not said.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="A column to import; all, where none is named.")] = None,
    rows: Annotated[Literal["document", "paragraph", "line"] | None, typer.Option(help="What of a text makes a row.")] = None,
    no_wait: NoWait = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Import a dataset and split it into train, calibrate, select and report."""
    with open_yard(data) as yard:
        with Live("upload") as live:
            config = {key: value for key, value in {"columns": column, "rows": rows}.items() if value}
            job = yard.import_dataset(name, source, target=target, task=task, wait=False, on_event=live.see, **config)
        if no_wait:
            return started(as_json, job)
        version = finish(yard, job, Live("import"))
    say(as_json, version, f"imported {describe(version)}{_splits(version)}")
    return None


@model.command("import")
def import_model(
    name: Name,
    path: Annotated[
        Path | None, typer.Argument(help=".onnx, .pth or .safetensors file, or a folder.", show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="The same, or a model of a hub, as hf:org/name.", show_default=False)
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="The class the weights belong to, as model.py:SimpleModel.", show_default=False)
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="A tensor that forward takes, as x:FP32[-1,10].", metavar="TENSOR")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What the model does; inferred where not said.", show_default=False)] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Make a language model's graph with a cache besides.")] = False,
    no_wait: NoWait = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Import a model that was made elsewhere."""
    given = [str(one) for one in (path, source) if one]
    if len(given) != 1:
        raise Invalid("Say once what to import: a file or folder, or --from hf:org/name.")
    with open_yard(data) as yard:
        with Live("upload") as live:
            config = {"onnx": True} if onnx else {}
            job = yard.import_model(
                name, given[0], module=module, inputs=inputs or (), task=task, wait=False, on_event=live.see, **config
            )
        if no_wait:
            return started(as_json, job)
        version = finish(yard, job, Live("import"))
    say(as_json, version, f"imported {describe(version)}")
    return None


@model.command("fetch")
def fetch(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="A folder to make.", show_default=False)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Download a version's files, every byte verified."""
    with open_yard(data) as yard, Live("fetch") as live:
        version = yard.version(reference)
        target = yard.fetch(version["reference"], folder, on_event=live.see)
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    body = {"reference": version["reference"], "hash": version["artefact"], "folder": str(target), "files": files}
    say(as_json, body, f"{version['reference']} is in {target}: {', '.join(files)}")


@model.command("alias")
def alias(
    reference: Reference,
    name: Annotated[str, typer.Argument(help="The alias, as prod.", show_default=False)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Give a version a second name, or move it there."""
    with open_yard(data) as yard:
        version = yard.set_alias(reference, name)
    say(as_json, version, f"{version['name']}@{name} is now {version['reference']}")


def _shared(group: typer.Typer, kind: Kind) -> None:
    """The commands that datasets and models have alike."""

    @group.command("list", help=f"List the project's {kind}s.")
    def listing(data: Data = None, as_json: AsJson = False) -> None:
        with open_yard(data) as yard:
            names = yard.datasets() if kind == "dataset" else yard.models()
        rows = [(n["name"], n["latest"], n["task"], _aliases(n["aliases"]), n["created"]) for n in names]
        say(as_json, names, table(("name", "latest", "task", "aliases", "created"), rows, f"No {kind}s yet."))

    @group.command("show", help=f"Show a {kind} and its versions, or one version by name@3 or name@alias.")
    def show(reference: Reference, data: Data = None, as_json: AsJson = False) -> None:
        with open_yard(data) as yard:
            if "@" in reference:
                version = yard.version(reference, kind)
                return say(as_json, version, _details(version))
            body = yard.versions(reference, kind)
        rows = [
            (v["reference"], v["task"], v["artefact"][:12], v["job"], v["created"], ", ".join(v["aliases"]))
            for v in body["versions"]
        ]
        say(as_json, body, table(("version", "task", "hash", "job", "created", "aliases"), rows, spare=("hash",)))
        return None

    @group.command("lineage", help=f"Show what a {kind} was made from, down to the data.")
    def lineage(reference: Reference, data: Data = None, as_json: AsJson = False) -> None:
        with open_yard(data) as yard:
            tree = yard.lineage(reference, kind)
        say(as_json, tree, tree_text(tree))

    @group.command("delete", help=f"Delete a {kind} with all its versions, or one version of it by name@3.")
    def delete(name: Deleted, yes: Yes = False, data: Data = None, as_json: AsJson = False) -> None:
        _delete(name, kind, yes, data, as_json)


_shared(dataset, "dataset")
_shared(model, "model")


def delete_any(
    name: Annotated[
        str,
        typer.Argument(
            help="A dataset or model, or a version as name@3; dataset:NAME or model:NAME where both exist.", show_default=False
        ),
    ],
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Delete a dataset or a model with all its versions, or one version by name@3."""
    prefix, _, rest = name.rpartition(":")
    named = rest.partition("@")[0]
    if prefix and prefix not in ("dataset", "model"):
        raise Invalid(f"'{prefix}' is neither dataset nor model.")
    with open_yard(data) as yard:
        datasets, models = ({n["name"] for n in names} for names in (yard.datasets(), yard.models()))
    kinds: list[Kind] = [kind for kind, names in (("dataset", datasets), ("model", models)) if named in names]  # type: ignore[misc]
    if prefix:
        kinds = [kind for kind in kinds if kind == prefix]
    if not kinds:
        raise not_found("dataset or model", named, datasets | models)
    if len(kinds) > 1:
        raise Invalid(f"There is a dataset and a model '{named}': say dataset:{rest} or model:{rest}.")
    _delete(rest, kinds[0], yes, data, as_json)


def _delete(name: str, kind: Kind, yes: bool, data: Path | None, as_json: bool) -> None:
    confirm("Delete", "deleted", f"{kind} '{name}'{'' if '@' in name else ' with all its versions'}", yes)
    with open_yard(data) as yard:
        yard.delete(name, kind)
    say(as_json, {"kind": kind, "name": name, "deleted": True}, f"{kind} {name} deleted")


def _aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{name}={number}" for name, number in aliases.items())


def _splits(version: dict[str, Any]) -> str:
    splits = version.get("metadata", {}).get("splits", {})
    return "".join(f"\n  {name:<10} {rows:>8,} rows" for name, rows in splits.items())


def _details(version: dict[str, Any]) -> str:
    """A version's fields, a line each; its metadata as indented JSON."""
    fields = [(key, value) for key, value in version.items() if value not in (None, {}, []) and key != "metadata"]
    metadata = json.dumps(version["metadata"], indent=2, ensure_ascii=False)
    return "\n".join([*(f"{key:<10} {_cell(value)}" for key, value in fields), f"metadata   {metadata}"])


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
