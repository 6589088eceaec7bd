"""A POST repeated under one Idempotency-Key takes effect once. `routes.Route` calls these around a request.

claim (before) → confirm (inside the very transaction that does the work, with the answer where the route knows it by then) →
keep or release (after). A process that dies on the way leaves a row that is not `done`: after a while a repeat takes it over,
under a new token, and the old request, should it still run, can no longer commit. So the work is done at most once, and a
repeat after a crash is safe.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, update

from modelyard.db import Database, Session, insert_new, now
from modelyard.errors import Conflict, Unavailable
from modelyard.tenancy.tables import Idempotency

KEPT = timedelta(hours=24)
TAKEOVER = timedelta(seconds=120)
LARGEST_ANSWER = 1 << 20

_OTHER = "This Idempotency-Key was used for another request: use a fresh key for each request."
_RUNNING = "A request with this Idempotency-Key is under way: ask again shortly."
_GONE = "A request with this Idempotency-Key was carried out, but its answer was not kept: look at what there is."
_TAKEN = "A repeat of this request took it over; nothing was done here."


@dataclass(frozen=True, slots=True)
class Slot:
    """One use of a key: `name` is what the caller chose, `request` a digest of method, path and body."""

    project: str
    key: str
    route: str
    name: str
    request: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def row(self) -> Any:
        """The condition that finds this use, whoever holds it."""
        mine = (Idempotency.project == self.project) & (Idempotency.key == self.key)
        return mine & (Idempotency.route == self.route) & (Idempotency.name == self.name)

    def confirm(self, session: Session, answer: Answer | None = None) -> None:
        """Mark the work done, in its own transaction, and keep what will be answered, if that is known. Raises `Conflict`,
        undoing the work, where a repeat took over."""
        held = update(Idempotency).where(self.row, Idempotency.token == self.token).values(_done(answer))
        if session.execute(held.returning(Idempotency.name)).first() is None:
            raise Conflict(_TAKEN)


@dataclass(frozen=True, slots=True)
class Answer:
    """A kept answer."""

    status: int
    media: str | None
    body: bytes


def claim(db: Database, slot: Slot) -> Answer | None:
    """None: go ahead. An answer: the work was done, this is what was said. Raises `Conflict` for
    a key used for another request and for one whose answer was not kept, `Unavailable` for a request still under way: who
    asks again finds how it went."""
    moment = now()
    fresh = {"project": slot.project, "key": slot.key, "route": slot.route, "name": slot.name, "request": slot.request}
    with db.begin() as session:
        session.execute(delete(Idempotency).where(Idempotency.created < moment - KEPT))
        if insert_new(
            session, Idempotency, [{**fresh, "token": slot.token, "created": moment, "claimed": moment, "done": False}]
        ):
            return None
        row = session.scalars(select(Idempotency).where(slot.row).with_for_update()).one()
        if row.request != slot.request:
            raise Conflict(_OTHER)
        if row.status is not None and row.body is not None:
            return Answer(row.status, row.media, row.body)
        if row.done:
            raise Conflict(_GONE)
        if row.claimed > moment - TAKEOVER:
            raise Unavailable(_RUNNING)
        row.token, row.claimed = slot.token, moment
    return None


def abandon(db: Database) -> None:
    """Control begins: what another one was at is taken over by its first repeat, without waiting for `TAKEOVER`."""
    with db.begin() as session:
        session.execute(update(Idempotency).where(Idempotency.done.is_(False)).values(claimed=now() - TAKEOVER))


def keep(db: Database, slot: Slot, answer: Answer | None) -> None:
    """The request was carried out; None keeps no answer (it held a secret, or is too long)."""
    with db.begin() as session:
        session.execute(update(Idempotency).where(slot.row, Idempotency.token == slot.token).values(_done(answer)))


def _done(answer: Answer | None) -> dict[str, Any]:
    if answer is None or len(answer.body) > LARGEST_ANSWER:
        return {"done": True}
    return {"done": True, "status": answer.status, "media": answer.media, "body": answer.body}


def release(db: Database, slot: Slot) -> None:
    """The request failed: if it changed nothing, its key may be used again."""
    held = (slot.row, Idempotency.token == slot.token, Idempotency.done.is_(False))
    with db.begin() as session:
        session.execute(delete(Idempotency).where(*held))
