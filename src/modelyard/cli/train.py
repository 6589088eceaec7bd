"""Train on the platform: what a model learns from and how, what its gang may take, and what a sweep searches.

Its options are many, so they stand here one by one; what they mean is for the platform to check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modelyard.cli.jobs import Follow, Set, finish, started
from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, describe, note, open_yard, say
from modelyard.cli.sweep import Trials, swept_text
from modelyard.cli.values import amount_of_bytes, asked
from modelyard.errors import Invalid

Direction = Literal["maximise", "minimise"]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="How to train: image-classifier (where not said), tabular, causal-lm, transformers, or your module.",
        show_default=False,
    ),
]
Mesh = Annotated[
    str | None,
    typer.Option(help="How the ranks share a model: auto, or by axis data=2,shard=2,tensor=2,pipe=2.", show_default=False),
]
Configuration = Annotated[
    Path | None, typer.Option(help="JSON file with the configuration; --set overrides it.", metavar="FILE")
]
Code = Annotated[Path | None, typer.Option(help="Your model.py, or a folder with it, for recipe module.", metavar="PATH")]
Cpus = Annotated[int | None, typer.Option(min=1, help="Processors that each rank takes; 1 where not said.", show_default=False)]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs that each rank takes.", show_default=False)]
Memory = Annotated[
    str | None, typer.Option(help="Memory that each rank takes, as 8GiB or 500MB.", metavar="SIZE", show_default=False)
]
Restarts = Annotated[
    int | None, typer.Option(min=0, max=1000, help="Times a gang that died is started again.", show_default=False)
]
Priority = Annotated[
    int | None,
    typer.Option(
        min=-100, max=100, help="Higher goes first and has lower make room; above 0: administrators.", show_default=False
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        help="A job that failed or was cancelled, to go on from, on any ranks and mesh.", metavar="JOB", show_default=False
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        "--sweep", help="Search: lr=1e-4..1e-2:log,width=[16,32,64],epochs=3..10; the best is NAME@best.", metavar="SPACE"
    ),
]
Number = Annotated[
    int | None,
    typer.Option(
        min=1, max=500, help="Trainings of a sweep, 20 where not said; hopeless ones are stopped early.", show_default=False
    ),
]
Parallel = Annotated[int | None, typer.Option(min=1, help="Trials at once; as many as fit where not said.", show_default=False)]
Metric = Annotated[
    str | None,
    typer.Option(help="What decides a sweep: select_accuracy, else select_loss, where not said.", show_default=False),
]
Better = Annotated[
    Direction | None,
    typer.Option(help="Whether more of the metric is better, or less; by its name where not said.", show_default=False),
]
Grace = Annotated[
    int | None, typer.Option(min=1, help="Epochs before a trial may be stopped; a ninth where not said.", show_default=False)
]


def train(
    name: Annotated[str, typer.Argument(help="Name of the model; the result is its newest version.", show_default=False)],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="The dataset, as digits or digits@1.", show_default=False)],
    recipe: Recipe = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the work; 1 where not said.", show_default=False)
    ] = None,
    mesh: Mesh = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training split.", show_default=False)] = None,
    settings: Set = None,
    config: Configuration = None,
    code: Code = None,
    model: Annotated[str | None, typer.Option(help="A model version to continue.", metavar="REF")] = None,
    base: Annotated[str | None, typer.Option(help="A Hugging Face model's version to fine-tune.", metavar="REF")] = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds the job may run in all.", show_default=False),
    ] = None,
    max_restarts: Restarts = None,
    priority: Priority = None,
    resume: Resume = None,
    sweep: Space = None,
    trials: Number = None,
    parallel: Parallel = None,
    metric: Metric = None,
    direction: Better = None,
    grace: Grace = None,
    follow: Follow = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on a dataset, or with --sweep many, and keep the best."""
    said: dict[str, Any] = {"dataset": dataset, "recipe": recipe, "ranks": ranks, "code": code, "model": model, "base": base}
    said |= {"epochs": epochs, "mesh": mesh, "metric": metric, "direction": direction, "grace": grace}
    said |= {"timeout": timeout, "max_restarts": max_restarts, "priority": priority, "resume": resume}
    said |= {"resources": _said(cpus=cpus, gpus=gpus, memory=amount_of_bytes(memory)) or None}
    said |= {"sweep": sweep, "trials": trials, "parallel": parallel}
    given = asked(settings, said, _read(config) if config else None)
    sweeps = given.get("sweep") is not None
    with open_yard(data) as yard:
        job = yard.train(name, wait=False, **given)
        if not follow:
            return started(as_json, job)
        note(f"job {job['id']}")
        version = finish(yard, job, Trials() if sweeps else Live("train", logs=True))
        text = swept_text(yard.job(job["id"]), version) if sweeps else f"trained {describe(version)}{scored(version)}"
    say(as_json, version, text)
    return None


def scored(version: Mapping[str, Any]) -> str:
    """What training says of a version's quality: ' · select accuracy 0.9815', or the loss where that is no figure."""
    select = version["metadata"].get("metrics", {}).get("select", {})
    metric = next((name for name in ("accuracy", "loss") if name in select), None)
    return f" · select {metric} {select[metric]:.4f}" if metric else ""


def _said(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _read(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"The configuration '{file}' cannot be read as JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Invalid(f"The configuration '{file}' must be a JSON object.")
    return body
