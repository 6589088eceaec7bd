"""The command `bench`: which engine runs a version best on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from modelyard.cli.jobs import Set, finish
from modelyard.cli.live import Live
from modelyard.cli.optimize import Best, On
from modelyard.cli.screen import AsJson, Data, describe, note, open_yard, say
from modelyard.cli.values import asked
from modelyard.cli.variants import findings
from modelyard.errors import Invalid
from modelyard.optimisation.units import cost

ENGINES = ("fp32", "openvino", "litert", "pt2")  # as variants are called, of the same numbers on another engine each
_ANY = 100.0  # points: each is proved to answer number by number, and a tie may be told either way


def bench(
    reference: Annotated[str, typer.Argument(help="The version to run, as digits-cnn@1.", show_default=False)],
    goal: Best = None,
    dataset: On = None,
    settings: Set = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Run a version by every engine that takes it, its own too, measure each here, and keep the best as the alias 'best'."""
    base = {"variants": ENGINES, "max_accuracy_drop": _ANY, "alias": False}
    given = asked(settings, {"goal": goal, "dataset": dataset}, base)
    with open_yard(data) as yard:
        if yard.version(reference)["task"] == "text-generation":
            raise Invalid(
                "bench runs graphs by several engines, and a language model by none of them: optimize measures its files."
            )
        job = yard.optimize(reference, wait=False, **given)
        note(f"job {job['id']}; the alias 'best' is set here once it has ended, `modelyard model alias` does so else")
        made = finish(yard, job, Live("bench", logs=True))
        facts, original = yard.job(job["id"])["facts"]["0"], made["metadata"]["original"]
        own = unbeaten(facts)
        best = original if own else made["reference"]
        there = other(yard.versions(made["name"]), original, facts)
        version = yard.version(best) if there else yard.set_alias(best, "best")
    if there:
        note(f"'best' stays {there}, which was not measured here; `modelyard model alias {best} best` moves it.")
    by = " · the original, on its own engine" if own else ""
    say(as_json, version | {"facts": facts}, f"{findings(facts)}\nbest by {facts['goal']} {describe(version)}{by}")


def unbeaten(facts: Mapping[str, Any]) -> bool:
    """Whether the original is better by the goal than what was chosen of the others."""
    own, chosen = facts["table"][0], next(row for row in facts["table"] if row["chosen"])
    return cost(own, facts["goal"]) < cost(chosen, facts["goal"])


def other(name: Mapping[str, Any], original: str, facts: Mapping[str, Any]) -> str | None:
    """The version that 'best' means already, where that is neither the original nor one of what was measured here."""
    best = next((version for version in name["versions"] if "best" in version["aliases"]), None)
    if best is None or best["reference"] == original:
        return None
    measured = {row["variant"] for row in facts["table"]}
    ours = best["metadata"].get("original") == original and best["metadata"].get("variant") in measured
    return None if ours else str(best["reference"])
