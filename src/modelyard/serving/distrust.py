"""Replicas that a gateway heard say what no replica says: they run users' code, and what they tell is not to be booked.

A thread of a gateway's writes it down; the controller ends them, and starts others as after any loss.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import update

from modelyard.db import Database, bump, now
from modelyard.serving.tables import ReplicaRow
from modelyard.serving.types import ReplicaState
from modelyard.telemetry import log

_log = log(__name__)


def distrust(database: Database, told: Mapping[str, str]) -> None:
    """Have replicas replaced (why, by token): they leave the routes now."""
    for token, why in told.items():
        _log.warning("replica distrusted", token=token, why=why)
    serving = ReplicaRow.token.in_(told) & (ReplicaRow.state == ReplicaState.ready)
    with database.begin() as session:
        session.execute(update(ReplicaRow).where(serving).values(state=ReplicaState.distrusted, changed=now()))
        bump(session)
