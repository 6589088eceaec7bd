"""What a meter counted reaches the ledger once, however often it is told."""

from __future__ import annotations

import pytest

from modelyard import migrations
from modelyard.db import Database
from modelyard.errors import Conflict
from modelyard.serving.meter import Counters, Identity, deltas
from modelyard.serving.settlement import forget, settle, settled
from modelyard.tenancy.ledger import usage

WHO = Identity("default", "k1", "digits", "digits-cnn@3")


@pytest.fixture
def database(tmp_path):
    made = Database(f"sqlite:///{tmp_path}/yard.db")
    migrations.metadata().create_all(made.engine)
    yield made
    made.close()


def booked(database):
    with database.read() as session:
        return usage(session, "default", group_by=("subject", "version"))


def test_differences_add_up_to_the_counters(database):
    for total in (Counters(1, 1, 0, 4, 10, 100, 50), Counters(3, 3, 1, 9, 30, 300, 150)):
        settle(database, deltas("f", {0: (WHO, total)}, settled(database, "f")))
    (row,) = booked(database)
    assert (row["calls"], row["errors"], row["units"], row["cpu_us"]) == (3, 1, 9, 30)
    assert settled(database, "f") == {0: Counters(3, 3, 1, 9, 30, 300, 150)}


def test_telling_the_same_twice_books_once(database):
    due = deltas("f", {0: (WHO, Counters(1, 1, 0, 4, 10, 100, 50))}, {})
    settle(database, due)
    settle(database, due)
    assert booked(database)[0]["calls"] == 1


def test_of_two_settlers_one_books_and_the_other_looks_again(database):
    first, both = Counters(2, 2, 0, 8, 20, 200, 100), Counters(3, 3, 1, 9, 30, 300, 150)
    early, late = (deltas("f", {0: (WHO, total)}, {}) for total in (first, both))
    settle(database, early)
    with pytest.raises(Conflict, match="up to 2, by another settler"):
        settle(database, late)
    assert settled(database, "f") == {0: first}
    settle(database, deltas("f", {0: (WHO, both)}, settled(database, "f")))
    for told_late in (early, deltas("f", {0: (WHO, first)}, {0: Counters(1, 1, 0, 4, 10, 100, 50)})):
        settle(database, told_late)
    assert settled(database, "f") == {0: both}
    assert booked(database)[0]["calls"] == 3


def test_a_forgotten_file_stays_in_the_ledger(database):
    settle(database, deltas("f", {0: (WHO, Counters(1, 1, 0, 4, 10, 100, 50))}, {}))
    forget(database, "f")
    assert settled(database, "f") == {}
    assert booked(database)[0]["calls"] == 1
