"""Labels that callers post later: whether an answer of some version was right. They count in the trial of a release.

Right and wrong answers of the two releases are paired in the order in which they are told; what has no partner yet waits in the
same row. It knows tables; `verdict` says what the pairs mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from modelyard.db import Session
from modelyard.errors import Invalid, NotFound
from modelyard.kinds import Config
from modelyard.serving import releases
from modelyard.serving.observations import put, read
from modelyard.serving.tables import DeploymentRow, ObservationRow, ReleaseRow
from modelyard.serving.types import Seen
from modelyard.serving.verdict import Evidence, Tally

SOURCE = "feedback"
_WAITING = 1000  # labels that wait for a partner


class Label(Config):
    """One answer's worth: `version`, its number as the answer said or 'model@number', `score` from 0, wrong, to 1, right."""

    version: str
    score: float = Field(ge=0, le=1)


class Feedback(Config):
    """POST /api/deployments/{name}/feedback."""

    items: list[Label] = Field(min_length=1, max_length=10_000)


def take(session: Session, project: str, name: str, items: Sequence[Label]) -> int:
    """Count labels of answers; returns how many pairs were made. Raises `NotFound` for a version that does not serve, `Invalid`
    for a number that two models have."""
    row = releases.get(session, project, name)
    stable = session.get_one(ReleaseRow, (row.id, row.stable))
    tried = session.get_one(ReleaseRow, (row.id, row.trial)) if row.trial is not None else stable
    arms = [_arm(name, item.version, stable, tried) for item in items]
    if stable.reference == tried.reference:  # nobody could say whose an answer was
        return 0
    return _pair(session, row, items, arms)


def _arm(name: str, version: str, stable: ReleaseRow, tried: ReleaseRow) -> str:
    """Whose answer it was: 'stable' or 'trial'."""
    names = stable.reference, tried.reference
    if version == str(stable.version) == str(tried.version) and names[0] != names[1]:
        raise Invalid(f"Both {names[0]} and {names[1]} have the number {version}; say which of them answered.")
    if version in (str(stable.version), names[0]):
        return "stable"
    if version in (str(tried.version), names[1]):
        return "trial"
    serves = names[0] if names[0] == names[1] else f"{names[0]} and, on trial, {names[1]}"
    raise NotFound(f"Deployment '{name}' serves no version '{version[:30]}'; it serves {serves}.")


def _pair(session: Session, row: DeploymentRow, items: Sequence[Label], arms: Sequence[str]) -> int:
    assert row.trial is not None
    kept = session.get(ObservationRow, (row.id, row.trial, SOURCE))
    # Copies: what is changed in place is no change to the session, and would not be written.
    waiting: dict[str, list[bool]] = {arm: list(kept.waiting[arm]) if kept is not None else [] for arm in ("stable", "trial")}
    evidence = read(kept) if kept is not None else Evidence()
    for item, arm in zip(items, arms, strict=True):
        waiting[arm].append(item.score < 0.5)
    pairs = list(zip(waiting["stable"], waiting["trial"], strict=False))
    odd = [trial for stable, trial in pairs if stable != trial]
    evidence += Evidence(feedback=Tally(len(odd), sum(odd)))
    put(session, Seen(row.id, row.trial, row.weight, SOURCE, 0, evidence))
    session.flush()
    session.get_one(ObservationRow, (row.id, row.trial, SOURCE)).waiting = {
        arm: wrong[len(pairs) :][-_WAITING:] for arm, wrong in waiting.items()
    }
    return len(pairs)
