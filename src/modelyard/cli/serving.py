"""Models as services: `deploy`, `predict`, `undeploy`, `deployment …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.curl import curl_line
from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, NoWait, open_yard, say
from modelyard.cli.table import table
from modelyard.cli.values import tensors
from modelyard.errors import Invalid

if TYPE_CHECKING:
    from modelyard.client import Answer

Name = Annotated[str, typer.Argument(help="A deployment's name.", show_default=False)]

deployment = typer.Typer(name="deployment", no_args_is_help=True, help="List and show deployments.")


def deploy(
    name: Annotated[str, typer.Argument(help="Name to serve it as; calls go to /v2/models/NAME.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="The version to serve, as digits-cnn@3; a name alone is its best.", show_default=False
        ),
    ],
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Processes that answer.")] = 1,
    engine: Annotated[
        str | None, typer.Option(help="onnx or torch; the model's best where not said.", show_default=False)
    ] = None,
    no_wait: NoWait = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model version, or move a deployment to another one without a gap."""
    with open_yard(data) as yard:
        with Live("deploy") as live:
            live.see({"type": "state", "state": "starting"})
            meant = yard.served(model)
            shown = yard.deploy(name, meant, replicas=replicas, engine=engine, wait=not no_wait)
        line = curl_line(yard.profile, shown) if shown["state"] == "ready" else ""
    say(as_json, numbered(shown) | {"curl": line}, f"{deployed(shown, model, meant)}\n{line}".rstrip())


def deployed(shown: dict[str, Any], asked: str, meant: str) -> str:
    """What `deploy` came to, and which version a bare name was taken for."""
    serves = "serves" if shown["state"] == "ready" else "will serve"
    taken = "" if asked == meant else f"; {asked} was taken for {meant if meant != shown['model'] else 'its newest version'}"
    return f"{shown['name']} {serves} {shown['model']} ({shown['state']}){taken}"


def predict(
    name: Name,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="An image file. May be repeated.", metavar="FILE")
    ] = None,
    texts: Annotated[list[str] | None, typer.Option("--text", help="A text. May be repeated.", metavar="TEXT")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="A tensor, as x=[[1,2,3]], x=@rows.json or x=@rows.npy. May be repeated.", metavar="NAME=VALUE"
        ),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Only this version may answer.", show_default=False)] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployment."""
    if sum(map(bool, (images, texts, inputs))) != 1:
        raise Invalid("Say what to predict on: one of --image FILE, --text TEXT and --input NAME=VALUE.")
    with open_yard(data) as yard:
        answer = yard.predict(
            name, tensors(inputs) if inputs else None, image=images or None, text=texts or None, version=version
        )
    body = {"deployment": answer.deployment, "version": number(answer.version), "id": answer.id, "outputs": answer.plain()}
    say(as_json, body, f"{answer_text(answer)}\n\nversion {answer.version}, request {answer.id}")


def number(version: str) -> int | str:
    """A version as the catalogue gives it, a number; the inference protocol has text."""
    return int(version) if version.isdecimal() else version


def numbered(shown: dict[str, Any]) -> dict[str, Any]:
    """A deployment whose versions are numbers."""
    replicas = [replica | {"version": number(replica["version"])} for replica in shown["replicas"]]
    return shown | {"version": number(shown["version"]), "replicas": replicas}


def answer_text(answer: Answer) -> str:
    """A table with a row a sample where all outputs have as many; else each output by itself."""
    plain = answer.plain()
    rows = {len(values) for values in plain.values()}
    if len(rows) != 1:
        return "\n".join(f"{name} {values}" for name, values in plain.items())
    shown = [[_short(values[i]) for values in plain.values()] for i in range(rows.pop())]
    return table(list(plain), shown, "an empty answer")


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = " ".join(_short(item) for item in value[:10])
        return f"{head} …" if len(value) > 10 else head
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def undeploy(name: Name, data: Data = None, as_json: AsJson = False) -> None:
    """End a deployment: calls under way are finished, new ones find nothing."""
    with open_yard(data) as yard:
        yard.undeploy(name)
    say(as_json, {"name": name, "deleted": True}, f"{name} is no longer served")


@deployment.command("list")
def listing(data: Data = None, as_json: AsJson = False) -> None:
    """List the project's deployments."""
    with open_yard(data) as yard:
        found = yard.deployments()
    rows = [(d["name"], d["model"], d["state"], d["engine"], len(d["replicas"]), d["error"]) for d in found]
    shown = [numbered(d) for d in found]
    say(as_json, shown, table(("name", "model", "state", "engine", "replicas", "note"), rows, "Nothing is deployed."))


@deployment.command("show")
def show(name: Name, data: Data = None, as_json: AsJson = False) -> None:
    """Show a deployment: what it takes and gives, its replicas, and a line to call it."""
    with open_yard(data) as yard:
        found = yard.deployment(name)
        line = curl_line(yard.profile, found) if found["state"] == "ready" else ""
    tensors_of = [(way[:-1], t["name"], t["datatype"], t["shape"]) for way in ("inputs", "outputs") for t in found[way]]
    replicas = [(r["token"], r["state"], r["pid"]) for r in found["replicas"]]
    parts = [
        f"{name} serves {found['model']} on {found['engine']} ({found['state']})"
        + (f": {found['error']}" if found["error"] else ""),
        table(("", "tensor", "datatype", "shape"), tensors_of, "Its tensors are known once it is ready."),
        table(("replica", "state", "pid"), replicas, "No replicas."),
        line,
    ]
    say(as_json, numbered(found) | {"curl": line}, "\n\n".join(part for part in parts if part))
