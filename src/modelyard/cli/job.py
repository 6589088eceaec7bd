"""`job show`: one job's page of facts: what it is, what it rests on, how fast it goes, where the time and the memory go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typer

from modelyard.cli.jobs import Job
from modelyard.cli.live import Figures, progress_text
from modelyard.cli.screen import AsJson, Data, open_yard, say, size, sparkline
from modelyard.cli.table import table

job = typer.Typer(name="job", no_args_is_help=True, help="Show a job.")
_CURVE = 40


@job.command("show")
def show(job: Job, data: Data = None, as_json: AsJson = False) -> None:
    """Show one job: its state, what it rests on, its curves, and by rank speed, time and memory."""
    with open_yard(data) as yard:
        body = yard.job(job)
        figures = Figures()
        for event in yard.events(job):
            if event["type"] == "metric":
                figures.add(event)
    say(as_json, body | {"curves": figures.series}, page(body, figures.series))


def page(body: Mapping[str, Any], curves: Mapping[str, list[float]]) -> str:
    """All of it as text, what is not known left out."""
    facts = body["facts"]
    first: Mapping[str, Any] = next(iter(facts.values()), {})
    blocks = [
        table(("fact", "value"), [row for row in _head(body, first) if row[1] not in (None, "")]),
        table(("rank", "samples/s", "memory peak", *_phases(facts)), list(_ranks(facts))) if facts else "",
        table(
            ("metric", "last", "curve"), [(name, f"{v[-1]:.4g}", sparkline(v, _CURVE)) for name, v in curves.items() if v], ""
        ),
    ]
    if "\n" in (error := _error(body)):
        blocks.append(f"{typer.style('ERROR', bold=True)}\n{error}")
    return "\n\n".join(block for block in blocks if block)


def _error(body: Mapping[str, Any]) -> str:
    return str(body["error"]["message"]) if body["error"] else ""


def _head(body: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "job", f"{body['id']} · {body['kind']}"
    yield "state", body["state"]
    yield "note", _error(body).partition("\n")[0] or body["why"]
    yield "attempt", body["attempt"]
    yield "resumed from", body["resume"]
    yield "made room", f"{body['preempted']}×, for a higher priority" if body["preempted"] else None
    yield "priority", body["priority"] or None
    for name, moment in (("submitted", "created"), ("started", "started"), ("ended", "finished")):
        yield name, body[moment] and f"{body[moment][:19].replace('T', ' ')} UTC"
    yield "progress", progress_text(body["progress"]) if body["progress"] else None
    yield "made", ", ".join(str(output["reference"] or output["hash"]) for output in body["outputs"])
    yield "ranks", body["ranks"]
    yield "config", _pairs(_settings(body["config"]))
    yield "mesh", first.get("mesh")
    yield "seed", first.get("seed")
    for role, reference in body["inputs"].items():
        kind, _, name = reference.partition(":")
        known = f"{reference} · {first.get('hashes', {}).get(role, '')[:12]}".rstrip(" ·")
        yield role, f"artefact {name[:12]}" if kind == "artefact" else known
    yield "environment", _pairs(first.get("environment", {}).items())
    estimate = first.get("memory_estimate", {})
    yield "memory estimated", _pairs((name, size(value)) for name, value in estimate.items() if value and name != "rows")
    yield "FLOPs", _flops(first)
    yield "checkpoints", _seconds(first.get("checkpoint_seconds"))
    yield "evaluation", _seconds(first.get("evaluation_seconds"))
    yield "processor time", _seconds(body["cpu_seconds"])


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a config says, by dotted names; what is None says nothing, and what is another recipe's means nothing."""
    recipe = str(config.get("recipe", "")).replace("-", "_")
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.") if not recipe or name in (recipe, "lora") else ()
        elif value is not None:
            yield f"{prefix}{name}", value


def _phases(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for rank in facts.values() for name in rank.get("step_ms", {}))
    return [f"{name} ms" for name in names]


def _ranks(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    names = [name.removesuffix(" ms") for name in _phases(facts)]
    for rank, said in sorted(facts.items(), key=lambda pair: int(pair[0])):
        memory = said.get("memory_peak")
        steps = said.get("step_ms", {})
        yield int(rank), said.get("samples_per_second"), size(memory) if memory else None, *(steps.get(name) for name in names)


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in items)


def _flops(first: Mapping[str, Any]) -> str | None:
    """'1.2e+09 a step, 3.4e+10 a second and rank, 41 % of the GPU'."""
    if "flops_per_step" not in first:
        return None
    pace = f", {first['flops_per_second']:.3g} a second and rank" if first.get("flops_per_second") else ""
    used = f", {first['utilisation']:.0%} of the GPU" if first.get("utilisation") is not None else ""
    return f"{first['flops_per_step']:.3g} a step{pace}{used}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f} s"
