"""The books add up exactly, count nothing twice, and never show one project another's."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.db import Base, Database
from modelyard.errors import Invalid
from modelyard.tenancy import ledger
from modelyard.tenancy.ledger import COUNTS, GROUPS, UsageEntry

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def db():
    database = fresh()
    yield database
    database.close()


def fresh() -> Database:
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    return database


def entry(source: str, project: str = "p", **options) -> UsageEntry:
    return UsageEntry(
        **{
            "project": project,
            "source": source,
            "key": "k",
            "kind": "serving",
            "subject": "digits",
            "version": "cnn@1",
            **options,
        }
    )


def test_usage_is_summed_by_its_groups(db: Database):
    with db.begin() as session:
        made = ledger.record(
            session,
            [
                entry("a", calls=1, units=10, cpu_us=333_333, bytes_in=5, bytes_out=6, errors=1),
                entry("b", calls=2, units=20, cpu_us=666_667),
                entry("c", version="cnn@2", calls=4),
                entry("d", key="other", calls=8),
                entry("e", kind="job", subject="j1", version="", cpu_us=7),
            ],
        )
    assert made == 5
    with db.read() as session:
        rows = ledger.usage(session, "p")
        assert [(r["kind"], r["subject"], r["version"], r["key"], r["calls"]) for r in rows] == [
            ("job", "j1", "", "k", 0),
            ("serving", "digits", "cnn@1", "k", 3),
            ("serving", "digits", "cnn@1", "other", 8),
            ("serving", "digits", "cnn@2", "k", 4),
        ]
        assert rows[1] == {
            "project": "p", "kind": "serving", "subject": "digits", "version": "cnn@1", "key": "k",
            "calls": 3, "units": 30, "cpu_us": 1_000_000, "bytes_in": 5, "bytes_out": 6, "errors": 1, "cpu_seconds": 1.0,
        }  # fmt: skip
        assert [(r["kind"], r["calls"]) for r in ledger.usage(session, "p", group_by=["kind"])] == [("job", 0), ("serving", 15)]
        assert [r["calls"] for r in ledger.usage(session, "p", group_by=[])] == [15]


def test_microseconds_add_up_where_floating_seconds_would_not(db: Database):
    with db.begin() as session:
        ledger.record(session, [entry(str(i), cpu_us=100_000) for i in range(1001)] + [entry("big", cpu_us=2**53)])
    with db.read() as session:
        assert ledger.usage(session, "p")[0]["cpu_us"] == 100_100_000 + 2**53


def test_a_source_counts_once_however_often_it_is_told(db: Database):
    for expected in (2, 0):
        with db.begin() as session:
            assert ledger.record(session, [entry("a", calls=1), entry("b", calls=1), entry("a", calls=1)]) == expected
    with db.begin() as session:
        assert ledger.record(session, []) == 0
        assert ledger.usage(session, "p")[0]["calls"] == 2


def test_another_projects_source_is_another(db: Database):
    with db.begin() as session:
        assert ledger.record(session, [entry("a", calls=1), entry("a", project="q", calls=1)]) == 2


def test_usage_of_a_span(db: Database):
    with db.begin() as session:
        ledger.record(session, [entry(str(hour), at=T0 + timedelta(hours=hour), calls=1) for hour in range(10)])
    with db.read() as session:
        since, until = T0 + timedelta(hours=2), T0 + timedelta(hours=5)
        assert [r["calls"] for r in ledger.usage(session, "p", since, until)] == [3]
        assert [r["calls"] for r in ledger.usage(session, "p", since=since)] == [8]
        assert ledger.usage(session, "p", since=T0 + timedelta(days=1)) == []


@pytest.mark.parametrize("group", ["project", "id; DROP TABLE usage", ""])
def test_unknown_groups_are_refused(db: Database, group: str):
    with db.read() as session, pytest.raises(Invalid, match="grouped by"):
        ledger.usage(session, "p", group_by=[group])


@pytest.mark.parametrize("wrong", [-1, 0.5, float("nan")])
@pytest.mark.parametrize("count", COUNTS)
def test_counts_are_whole_and_not_negative(count: str, wrong: float):
    with pytest.raises(Invalid, match=count):
        entry("a", **{count: wrong})


def test_what_is_recorded_rolls_back_with_the_work(db: Database):
    def broken() -> None:
        with db.begin() as session:
            ledger.record(session, [entry("a", calls=1)])
            ledger.audit(session, "p", "k", "job.submit", "j")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    with db.read() as session:
        assert ledger.usage(session, "p") == []
        assert ledger.audit_log(session, "p") == []


def test_the_audit_log_reads_like_a_log_and_pages_back(db: Database):
    with db.begin() as session:
        for number in range(5):
            ledger.audit(session, "p", "k" if number else None, "job.submit", f"j{number}", {"ranks": number})
    with db.read() as session:
        last = ledger.audit_log(session, "p", limit=2)
        assert [row["subject"] for row in last] == ["j3", "j4"]
        assert [row["subject"] for row in ledger.audit_log(session, "p", before=last[0]["id"])] == ["j0", "j1", "j2"]
        first = ledger.audit_log(session, "p")[0]
    assert (first["key"], first["action"], first["detail"]) == ("", "job.submit", {"ranks": 0})
    assert datetime.fromisoformat(first["at"]).tzinfo is not None


books = st.lists(
    st.tuples(
        st.sampled_from(["p", "q", "p%", "P", "p' OR '1'='1"]),
        st.sampled_from(["k1", "k2"]),
        st.sampled_from(["digits", "other"]),
        st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        st.integers(0, 2**40),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(books, st.sets(st.sampled_from(GROUPS)))
def test_every_project_sees_its_own_book_and_no_other(told: list[tuple[str, str, str, str, int]], groups: set[str]):
    db = fresh()
    expected: dict[str, dict[str, int]] = defaultdict(dict)
    with db.begin() as session:
        for project, key, subject, source, cpu_us in told:
            ledger.record(session, [entry(source, project=project, key=key, subject=subject, cpu_us=cpu_us)])
            ledger.audit(session, project, key, "did", subject)
            expected[project].setdefault(source, cpu_us)
    with db.read() as session:
        for project in {row[0] for row in told} | {"stranger"}:
            rows = ledger.usage(session, project, group_by=sorted(groups))
            assert sum(row["cpu_us"] for row in rows) == sum(expected[project].values())
            assert {row["project"] for row in rows} <= {project}
            assert len(ledger.audit_log(session, project)) == sum(row[0] == project for row in told)
    db.close()
