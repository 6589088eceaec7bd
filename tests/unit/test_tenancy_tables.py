"""The ledger's tables refuse to be changed, and what must be unique is."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from modelyard.db import Base, Database
from modelyard.tenancy import ledger
from modelyard.tenancy.ledger import UsageEntry
from modelyard.tenancy.tables import Key


@pytest.fixture
def db(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        ledger.record(session, [UsageEntry(project="p", source="s", key="k", kind="job", subject="j", calls=1)])
        ledger.audit(session, "p", "k", "key.create", "x")
    yield database
    database.close()


@pytest.mark.parametrize("table", ["usage", "audit"])
@pytest.mark.parametrize("change", ["UPDATE {} SET project = 'q'", "DELETE FROM {}", "DELETE FROM {} WHERE id = 1"])
def test_the_books_are_append_only(db: Database, table: str, change: str):
    with pytest.raises(IntegrityError, match=f"{table} is append-only"), db.begin() as session:
        session.execute(text(change.format(table)))
    with db.read() as session:
        assert [row["calls"] for row in ledger.usage(session, "p")] == [1]
        assert len(ledger.audit_log(session, "p")) == 1


def test_a_key_belongs_to_a_project_that_is_there(db: Database):
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), db.begin() as session:
        session.add(Key(id="k", project="nobody", scope=1, digest="d"))
