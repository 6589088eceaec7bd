"""Models as services: `deploy`, `predict`, `undeploy`, `deployment …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.curl import curl_line
from modelyard.cli.gate import (
    Baseline,
    Confidence,
    MaxDrop,
    MaxSliceDrop,
    More,
    NoGate,
    Override,
    decision_text,
    gate_text,
    policy,
)
from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, NoWait, open_yard, say
from modelyard.cli.table import table
from modelyard.cli.values import tensors
from modelyard.errors import Invalid

if TYPE_CHECKING:
    from modelyard.client import Answer

Name = Annotated[str, typer.Argument(help="A deployment's name.", show_default=False)]

Least = Annotated[
    int | None, typer.Option(min=0, max=64, help="The fewest; 0: none while nobody calls.", metavar="N", show_default=False)
]
Most = Annotated[int | None, typer.Option(min=1, max=64, help="The most, when many call.", metavar="N", show_default=False)]
Idle = Annotated[float | None, typer.Option(help="Seconds without a call after which it sleeps.", show_default=False)]
LatencyTarget = Annotated[
    float | None, typer.Option(help="Seconds; a call that would take longer is refused at once.", show_default=False)
]
Canary = Annotated[
    int | None, typer.Option(min=1, max=99, help="Try it on so many % of the calls.", metavar="%", show_default=False)
]
Shadow = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="Try it on copies of so many % of the calls.", metavar="%", show_default=False),
]
Engine = Annotated[str | None, typer.Option(help="onnx or torch; the model's best where not said.", show_default=False)]

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
    min_replicas: Least = None,
    max_replicas: Most = None,
    idle: Idle = None,
    latency_target: LatencyTarget = None,
    cache: Annotated[bool, typer.Option("--cache", help="Answer the same input from memory.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads a replica computes in.", metavar="N")] = 1,
    canary: Canary = None,
    shadow: Shadow = None,
    engine: Engine = None,
    max_accuracy_drop: MaxDrop = None,
    max_slice_drop: MaxSliceDrop = None,
    confidence: Confidence = None,
    baseline: Baseline = None,
    more: More = None,
    no_gate: NoGate = False,
    override: Override = None,
    no_wait: NoWait = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model version, or move a deployment to another one without a gap."""
    losses = {"max_accuracy_drop": max_accuracy_drop, "max_slice_drop": max_slice_drop}
    gate = policy(more, **losses, confidence=confidence, baseline=baseline)
    with open_yard(data) as yard:
        with Live("deploy") as live:
            live.see({"type": "state", "state": "starting"})
            meant = yard.served(model)
            shown = yard.deploy(
                name,
                meant,
                wait=not no_wait,
                replicas=replicas,
                engine=engine,
                latency_target=latency_target,
                cache=cache,
                threads=threads,
                canary=canary,
                shadow=shadow,
                min_replicas=min_replicas,
                max_replicas=max_replicas,
                idle=idle,
                gate=gate,
                lift_gate=no_gate or None,
                override=override,
            )
        line = curl_line(yard.profile, shown) if shown["state"] == "ready" else ""
    say(as_json, numbered(shown) | {"curl": line}, f"{deployed(shown, model, meant)}\n{line}".rstrip())


def deployed(shown: dict[str, Any], asked: str, meant: str) -> str:
    """What `deploy` came to, and which version a bare name was taken for."""
    if (trial := shown.get("trial")) is not None:
        how = f"a copy of {trial['share']} % of the calls" if trial["kind"] == "shadow" else f"{trial['share']} % of the calls"
        return f"{shown['name']} serves {shown['model']}, and gives {trial['model']} {how} ({trial['state']})"
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
    body = {"deployment": answer.deployment, "model": answer.model, "version": number(answer.version), "id": answer.id}
    say(as_json, body | {"outputs": answer.plain()}, f"{answer_text(answer)}\n\n{answer.model}, request {answer.id}")


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


def promote(name: Name, override: Override = None, data: Data = None, as_json: AsJson = False) -> None:
    """Have the version on trial answer every call."""
    with open_yard(data) as yard:
        shown = yard.promote(name, override=override)
    say(as_json, numbered(shown), f"{name} serves {shown['model']}")


def rollback(name: Name, data: Data = None, as_json: AsJson = False) -> None:
    """End a trial, or go back to the version that was served before."""
    with open_yard(data) as yard:
        shown = yard.rollback(name)
    say(as_json, numbered(shown), f"{name} serves {shown['model']}. {shown['note']}")


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
    replicas = [(r["token"], r["version"], r["state"], r["pid"]) for r in found["replicas"]]
    parts = [
        f"{name} serves {found['model']} on {found['engine']} ({found['state']})"
        + (f": {found['error']}" if found["error"] else ""),
        table(("", "tensor", "datatype", "shape"), tensors_of, "Its tensors are known once it is ready."),
        table(("replica", "version", "state", "pid"), replicas, "No replicas."),
        gate_text(found["gate"], f"deployment {name}"),
        decision_text(found["decision"]),
        on_trial(found["trial"]),
        found["note"] or "",
        line,
    ]
    say(as_json, numbered(found) | {"curl": line}, "\n\n".join(part for part in parts if part))


def on_trial(trial: dict[str, Any] | None) -> str:
    """What is known of a version on trial; nothing where there is none."""
    if trial is None:
        return ""
    rows = [(signal, compared, against) for signal, (compared, against) in trial["evidence"].items()]
    kind = f"{trial['model']} is on trial as a {trial['kind']} with {trial['share']} % of the calls"
    return f"{kind} ({trial['state']}, {trial['calls']} calls so far). {trial['verdict']}\n" + table(
        ("compared by", "comparisons", "against it"), rows, ""
    )
