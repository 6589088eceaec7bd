"""The command `optimize`: variants of a model, by the usual ways, by steps, or by a search among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from modelyard.cli.jobs import Follow, Set, finish, started
from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, describe, note, open_yard, say
from modelyard.cli.search import searched_text, searching
from modelyard.cli.values import asked, seconds
from modelyard.cli.variants import findings

Goal = Literal["latency", "throughput", "size", "memory"]
Drop = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="Points of accuracy that may be lost, of a language model percent of its perplexity; 1 where not said.",
        show_default=False,
    ),
]
Best = Annotated[
    Goal | None,
    typer.Option(
        help="What is best among those: latency where not said, throughput, size, memory.", metavar="GOAL", show_default=False
    ),
]
On = Annotated[
    str | None,
    typer.Option("--dataset", "--on", "-d", help="What to measure on; what it was trained on where not said.", metavar="REF"),
]
Steps = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        help="A step, as prune:channels=0.5,finetune=3, distil:epochs=5, quantize:static-int8. Again: the next step.",
        metavar="STEP",
    ),
]
Number = Annotated[int | None, typer.Option(min=1, help="Search among chains of steps: so many at most.", show_default=False)]
Budget = Annotated[str | None, typer.Option(help="Search for so long, as 90s, 5m or 1h.", metavar="TIME", show_default=False)]
Space = Annotated[
    str | None,
    typer.Option(help="What a search tries, as channels=[0,0.5],quantize=[none,static-int8].", show_default=False),
]
Parallel = Annotated[int | None, typer.Option(min=1, help="Trials at once; as many as fit where not said.", show_default=False)]
Cpus = Annotated[int | None, typer.Option(min=1, help="Processors for the steps that train; one where not said.")]


def optimize(
    reference: Annotated[str, typer.Argument(help="The model to optimise, as digits-cnn@1.", show_default=False)],
    max_accuracy_drop: Drop = None,
    goal: Best = None,
    dataset: On = None,
    steps: Steps = None,
    trials: Number = None,
    time_budget: Budget = None,
    space: Space = None,
    parallel: Parallel = None,
    cpus: Cpus = None,
    settings: Set = None,
    follow: Follow = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make smaller, faster variants of a model, measure them, and choose the best within a budget of accuracy; with --trials or
    --time-budget, search for the best steps."""
    said: dict[str, Any] = {
        "max_accuracy_drop": max_accuracy_drop,
        "goal": goal,
        "dataset": dataset,
        "steps": steps or None,
        "trials": trials,
        "time_budget": seconds(time_budget),
        "space": space,
        "parallel": parallel,
        "resources": {"cpus": cpus} if cpus else None,
    }
    given = asked(settings, said)
    with open_yard(data) as yard:
        job = yard.optimize(reference, wait=False, **given)
        if not follow:
            return started(as_json, job)
        note(f"job {job['id']}")
        searches = job["kind"] == "search"
        version = finish(yard, job, searching() if searches else Live("optimize", logs=True))
        ended = yard.job(job["id"])
    facts = ended["facts"]["0"]
    say(as_json, version | {"facts": facts}, searched_text(ended, version) if searches else _found(facts, version))
    return None


def _found(facts: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    return f"{findings(facts)}\nchosen {describe(version)}"
