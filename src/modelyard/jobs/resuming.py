"""Whether a job may go on from the newest checkpoint of another, which failed or was cancelled, on other ranks or another mesh.

`service.submit` asks. What the checkpoint is of must be the same: the inputs by their hashes, and the config but for what the
kind names (`JobKind.resumable`). Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelyard.errors import Invalid
from modelyard.jobs.types import Job, Resolved, State
from modelyard.kinds import JobKind

_SHOWN = 5


def check(kind: JobKind, earlier: Job, config: Mapping[str, Any], inputs: Sequence[Resolved]) -> None:
    """Raises `Invalid` where a job of this kind, config and inputs cannot go on from `earlier`, naming what differs."""
    if kind.resumable is None:
        raise Invalid(f"Jobs of kind '{kind.name}' go on from no other job's checkpoint.")
    if earlier.kind != kind.name:
        raise Invalid(f"The job {earlier.id} is of kind '{earlier.kind}'; a '{kind.name}' cannot go on from it.")
    if earlier.state not in (State.failed, State.cancelled):
        more = "continue from the version it made" if earlier.state is State.succeeded else "cancel it first"
        raise Invalid(f"The job {earlier.id} is {earlier.state.value}; one that failed or was cancelled is resumed: {more}.")
    if wrong := [*_inputs(earlier, inputs), *_options(earlier.config, config, kind.resumable)]:
        shown = "; ".join(wrong[:_SHOWN]) + ("; …" if len(wrong) > _SHOWN else "")
        free = ", ".join(kind.resumable)
        raise Invalid(f"The checkpoint of job {earlier.id} is of other work: {shown}. What may differ: ranks, {free}.")


def _inputs(earlier: Job, inputs: Sequence[Resolved]) -> Iterator[str]:
    there, here = ({one.role: one for one in given} for given in (earlier.resolved, inputs))
    for role in sorted(there.keys() | here.keys()):
        was, now = there.get(role), here.get(role)
        if (was and was.artefact) != (now and now.artefact):
            yield f"input '{role}' is {now.reference if now else 'not given'}, there {was.reference if was else 'not given'}"


def _options(was: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Of options that both may have the dotted name, and what it is in each."""
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name), now.get(name)
        if name in free or before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _options(before, after, (), f"{prefix}{name}.")
        else:
            yield f"option {prefix}{name} is {_text(after)}, there {_text(before)}"


def _text(value: Any) -> str:
    return json.dumps(value)[:80]
