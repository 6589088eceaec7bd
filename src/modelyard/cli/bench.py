"""The command `bench`: which engine runs a version fastest on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from modelyard.cli.jobs import Set, finish
from modelyard.cli.live import Live
from modelyard.cli.optimize import Best, On
from modelyard.cli.screen import AsJson, Data, describe, note, open_yard, say
from modelyard.cli.values import asked
from modelyard.cli.variants import findings
from modelyard.errors import Invalid

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
    """Run a version by every engine that takes it, measure each here, and keep the fastest as the version's alias 'best'."""
    given = asked(settings, {"goal": goal, "dataset": dataset}, {"variants": ENGINES, "max_accuracy_drop": _ANY})
    with open_yard(data) as yard:
        if yard.version(reference)["task"] == "text-generation":
            raise Invalid(
                "bench runs graphs by several engines, and a language model by none of them: optimize measures its files."
            )
        job = yard.optimize(reference, wait=False, **given)
        note(f"job {job['id']}")
        version = finish(yard, job, Live("bench", logs=True))
        facts = yard.job(job["id"])["facts"]["0"]
    say(as_json, version | {"facts": facts}, f"{findings(facts)}\nfastest {describe(version)}")
