"""Releases over a database: put on trial, promoted, rolled back, put to sleep and woken; and the labels that judge them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_serving_service import CALLER, CARD, deploy, replica, settle, version

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.tables import ArtefactRow
from modelyard.db import Base, Database, now, revision
from modelyard.errors import Conflict, Invalid, NotFound
from modelyard.serving import observations, releases, service
from modelyard.serving.directory import Directory
from modelyard.serving.feedback import Label, take
from modelyard.serving.tables import DeploymentRow, ObservationRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentRequest, DeploymentState, Seen, TrialKind
from modelyard.serving.verdict import Evidence, Tally
from modelyard.tenancy import ledger
from modelyard.tenancy import service as tenancy


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A deployment 'd' whose version 1 serves."""
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        tenancy.create_project(session, "team")
        for number in (1, 2, 3):  # as `version` has them
            session.add(ArtefactRow(project="team", hash=f"hash{number}", size=1, files=1, created=now()))
            session.flush()
            catalogue.register(session, "team", kind="model", name="m", artefact=f"hash{number}")
    deploy(database)
    replica(database, "one", 1)
    settle(database, 1)
    yield database
    database.close()


def shown(db: Database) -> service.Deployment:
    with db.read() as session:
        return service.get(session, "team", "d")


def verb(db: Database, what: object) -> service.Deployment:
    with db.begin() as session:
        what(session, CALLER, "d")  # type: ignore[operator]
    return shown(db)


def seen(db: Database, *, share: int = 20, generation: int = 2, calls: int = 5, source: str = "a") -> None:
    evidence = Evidence(errors=Tally(4, 3))
    observations.write(db, [Seen(1, generation, share, source, calls, evidence)])


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_a_version_is_tried_beside_the_one_that_serves(db: Database, kind: str) -> None:
    tried = deploy(db, 2, **{kind: 20})
    assert (tried.model, tried.state) == ("m@1", "ready")
    assert tried.trial is not None
    assert (tried.trial.kind, tried.trial.model, tried.trial.share, tried.trial.state) == (kind, "m@2", 20, "pending")
    with db.read() as session:
        [route] = Directory().read(session)
    assert route.trial is not None
    assert (route.version, route.versions, route.trial.endpoints) == ("1", ("1",), ())  # until it has a replica
    replica(db, "two", 2)
    with db.read() as session:
        [route] = Directory().read(session)
    assert route.trial is not None
    assert (route.trial.kind, route.trial.version, route.trial.share) == (TrialKind(kind), "2", 20)
    assert [e.token for e in route.endpoints] == ["one"]
    assert [e.token for e in route.trial.endpoints] == ["two"]
    assert route.versions == ("1", "2")


def test_the_same_trial_twice_is_one_and_another_share_begins_anew(db: Database) -> None:
    deploy(db, 2, canary=20)
    seen(db)
    deploy(db, 2, canary=20)
    trial = shown(db).trial
    assert trial is not None
    assert (trial.calls, trial.evidence["errors"]) == (5, [4, 3])
    deploy(db, 2, canary=30)
    trial = shown(db).trial
    assert trial is not None
    assert (trial.share, trial.calls, trial.evidence["errors"]) == (30, 0, [0, 0])
    with db.read() as session:
        assert session.query(DeploymentRow.generation).scalar() == 2
    seen(db, share=20)  # by a gateway that has not heard of it yet
    trial = shown(db).trial
    assert trial is not None
    assert trial.calls == 0


def test_several_gateways_are_added_and_one_that_tells_twice_counts_once(db: Database) -> None:
    deploy(db, 2, canary=20)
    seen(db)
    seen(db)
    seen(db, source="b", calls=7)
    trial = shown(db).trial
    assert trial is not None
    assert (trial.calls, trial.evidence["errors"]) == (12, [8, 6])


def test_replicas_that_are_lost_are_counted_beside_what_gateways_saw(db: Database) -> None:
    with db.begin() as session:
        observations.lost(session, 1, 1)  # nothing is on trial
    deploy(db, 2, canary=20)
    seen(db)
    with db.begin() as session:
        for generation in (2, 1, 2, 0):
            observations.lost(session, 1, generation)
    trial = shown(db).trial
    assert trial is not None
    assert (trial.calls, trial.evidence["errors"], trial.evidence["losses"]) == (5, [4, 3], [3, 2])


def test_promoted_it_serves_and_the_one_before_answers_until_it_is_whole(db: Database) -> None:
    deploy(db, replicas=2)
    deploy(db, 2, canary=20)
    replica(db, "two", 2)
    settle(db, 2)
    promoted = verb(db, releases.promote)
    assert (promoted.model, promoted.previous, promoted.trial) == ("m@2", "m@1", None)
    with db.read() as session:
        [route] = Directory().read(session)
        row = session.get_one(ReleaseRow, (1, 2))
    assert route.version == "1"  # two replicas are wanted, one is there
    assert (row.replicas, row.settled) == (2, False)


def grown(db: Database, replicas: int) -> None:
    """What answers was scaled since."""
    with db.begin() as session:
        session.query(ReleaseRow).filter_by(generation=1).update({"replicas": replicas})


def sizes(db: Database) -> dict[int, int]:
    with db.read() as session:
        return {row.generation: row.replicas for row in session.query(ReleaseRow)}


def test_a_new_release_is_as_large_as_what_answers(db: Database) -> None:
    deploy(db, max_replicas=8)
    grown(db, 6)
    deploy(db, 2, max_replicas=8)
    assert sizes(db) == {1: 6, 2: 6}
    deploy(db, 3, max_replicas=4)  # beside one that was never ready the first one answers still
    assert sizes(db) == {1: 6, 3: 4}
    deploy(db, 3, max_replicas=8, min_replicas=7, threads=2)
    assert sizes(db) == {1: 6, 4: 7}


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_a_release_on_trial_is_as_large_as_its_share_of_what_answers(db: Database, kind: str) -> None:
    deploy(db, max_replicas=8)
    grown(db, 6)
    deploy(db, 2, **{kind: 20})
    assert sizes(db) == {1: 6, 2: 2}
    deploy(db, 2, **{kind: 60})
    assert sizes(db) == {1: 6, 2: 4}


def test_who_is_tried_or_takes_over_grows_with_what_answers(db: Database) -> None:
    deploy(db, max_replicas=8)
    deploy(db, 2, max_replicas=8)
    deploy(db, 3, canary=50)
    with db.begin() as session:
        answers = session.get_one(ReleaseRow, (1, 1))
        session.expunge(answers)
        assert releases.resize(session, answers, 6)
        assert not releases.resize(session, answers, 7), "it is another number by now"
    assert sizes(db) == {1: 6, 2: 6, 3: 3}
    with db.begin() as session:
        assert releases.resize(session, session.get_one(ReleaseRow, (1, 1)), 0)
    assert sizes(db) == {1: 0, 2: 6, 3: 1}


def test_who_is_to_take_over_and_is_in_trouble_shrinks_with_what_answers(db: Database) -> None:
    deploy(db, max_replicas=8)
    grown(db, 6)
    deploy(db, 2, max_replicas=8)
    with db.begin() as session:
        session.query(ReleaseRow).filter_by(generation=2).update({"error": "one was lost"})
    for wanted, found in ((2, 2), (5, 5), (0, 1)):
        with db.begin() as session:
            assert releases.resize(session, session.get_one(ReleaseRow, (1, 1)), wanted)
        assert sizes(db) == {1: wanted, 2: found}


def test_promoted_it_takes_over_from_what_answers_though_another_was_to(db: Database) -> None:
    deploy(db, max_replicas=8)
    grown(db, 3)
    deploy(db, 2)
    deploy(db, 3, canary=20)
    replica(db, "three", 3)
    settle(db, 3)
    assert sizes(db) == {1: 3, 2: 1, 3: 1}
    assert verb(db, releases.promote).previous == "m@1"
    with db.read() as session:
        [route] = Directory().read(session)
    assert (route.version, sizes(db)[3]) == ("1", 3)


def test_what_found_no_room_is_tried_at_another_share_as_the_same_release(db: Database) -> None:
    deploy(db, 2, canary=20)
    with db.begin() as session:
        session.query(ReleaseRow).filter_by(generation=2).update({"error": "No room", "retry_at": now()})
    trial = deploy(db, 2, canary=30).trial
    assert trial is not None
    assert (trial.share, trial.error, set(sizes(db))) == (30, None, {1, 2})


def test_rolled_back_the_one_before_serves_again(db: Database) -> None:
    deploy(db, 2)
    replica(db, "two", 2)
    settle(db, 2)
    back = verb(db, releases.roll_back)
    assert (back.model, back.previous) == ("m@1", "m@2")
    assert back.note == "Rolled back from m@2 by hand."
    with db.read() as session:
        [route] = Directory().read(session)
        assert ledger.audit_log(session, "team")[-1]["action"] == "deployment.rollback"
    assert route.version == "2"  # until the other is whole again
    settle(db, 1)
    with db.read() as session:
        [route] = Directory().read(session)
    assert route.version == "1"


def test_what_serves_stays_while_one_after_another_does_not_become_whole(db: Database) -> None:
    deploy(db, 2, replicas=2)
    replica(db, "two", 2)
    with db.begin() as session:  # one of two was ready
        session.query(ReleaseRow).filter_by(generation=2).update({"signature": {"inputs": []}, "state": "ready"})
    deploy(db, 3, replicas=2)
    assert shown(db).previous == "m@1"
    with db.read() as session:
        [route] = Directory().read(session)
        known = {row.generation: row for row in session.query(ReleaseRow)}
        asked = releases.wanted(session.get_one(DeploymentRow, 1), known)
    assert [endpoint.token for endpoint in route.endpoints] == ["one"]
    assert [(one.generation, one.replicas) for one in asked] == [(3, 2), (1, 1)]


def test_what_serves_though_it_was_never_whole_stays_where_the_one_before_is_lost(db: Database) -> None:
    deploy(db, 2, replicas=2)
    replica(db, "two", 2)
    with db.begin() as session:
        session.query(ReleaseRow).filter_by(generation=2).update({"signature": {"inputs": []}, "state": "ready"})
        session.query(ReplicaRow).filter_by(token="one").delete()
    deploy(db, 3, replicas=2)
    with db.read() as session:
        [route] = Directory().read(session)
    assert [endpoint.token for endpoint in route.endpoints] == ["two"]


def test_rolled_back_from_what_was_never_whole_the_one_that_answers_goes_on(db: Database) -> None:
    deploy(db, 2, replicas=3)
    replica(db, "two", 2)
    with db.begin() as session:
        session.query(ReleaseRow).filter_by(generation=2).update({"signature": {"inputs": []}, "state": "ready"})
    back = verb(db, releases.roll_back)
    assert (back.model, back.state, back.previous) == ("m@1", "ready", "m@2")
    with db.read() as session:
        [route] = Directory().read(session)
        known = {row.generation: row for row in session.query(ReleaseRow)}
        asked = releases.wanted(session.get_one(DeploymentRow, 1), known)
    assert (route.version, [endpoint.token for endpoint in route.endpoints]) == ("1", ["one"])
    assert [(one.generation, one.replicas) for one in asked] == [(1, 1)]


def test_a_release_that_failed_wakes_nobody_and_the_one_before_it_does(db: Database) -> None:
    deploy(db, min_replicas=0)
    with db.begin() as session:
        asleep = {"replicas": 0, "state": DeploymentState.asleep}
        session.query(ReleaseRow).update(asleep)
        session.query(ReplicaRow).delete()
    deploy(db, 2, min_replicas=0)
    with db.begin() as session:
        releases.wake(session, "team", "d")
        assert session.get_one(ReleaseRow, (1, 1)).replicas == 0, "the new one is on its way"
        failed = {"state": DeploymentState.failed, "error": "no luck"}
        session.query(ReleaseRow).filter_by(generation=2).update(failed)
    with db.read() as session:
        [route] = Directory().read(session)
    assert (route.version, route.state, route.wakes) == ("1", DeploymentState.asleep, True)
    with db.begin() as session:
        releases.wake(session, "team", "d")
    assert (shown(db).model, shown(db).state, shown(db).error) == ("m@2", "failed", "no luck")
    with db.read() as session:
        row = session.get_one(ReleaseRow, (1, 1))
        assert (row.replicas, row.state) == (1, "pending")


def test_a_rollback_ends_a_trial_first(db: Database) -> None:
    deploy(db, 2, shadow=50)
    ended = verb(db, releases.roll_back)
    assert (ended.model, ended.trial) == ("m@1", None)
    assert ended.note == "m@2: The trial was ended by hand."
    with pytest.raises(Conflict, match="served nothing else before"):
        verb(db, releases.roll_back)
    with pytest.raises(Conflict, match="Nothing is on trial"):
        verb(db, releases.promote)


def test_what_cannot_be_tried(db: Database) -> None:
    with pytest.raises(Invalid, match="either a canary or a shadow"):
        deploy(db, 2, canary=10, shadow=10)
    with pytest.raises(Conflict, match="serves nothing yet"):
        deploy(db, 2, name="new", canary=10)
    with pytest.raises(Invalid, match="min_replicas is 4, more than max_replicas, which is 2"):
        deploy(db, 2, min_replicas=4, max_replicas=2)


def test_releases_that_are_no_longer_needed_are_forgotten(db: Database) -> None:
    for number in (2, 3, 4):
        deploy(db, number)
        settle(db, number)
    with db.read() as session:
        assert [row.generation for row in session.query(ReleaseRow).order_by(ReleaseRow.generation)] == [3, 4]
    with db.begin() as session:
        service.undeploy(session, CALLER, "d")
        assert session.query(ReleaseRow).count() == session.query(ObservationRow).count() == 0


def test_a_release_that_never_served_is_nothing_to_go_back_to(db: Database) -> None:
    deploy(db, 2)
    deploy(db, 3)
    assert shown(db).previous == "m@1"


def test_only_a_call_wakes_what_sleeps(db: Database) -> None:
    deploy(db, min_replicas=0)
    with db.begin() as session:
        session.query(ReleaseRow).update({"replicas": 0, "state": DeploymentState.asleep})
        before = revision(session)
        releases.wake(session, "team", "d")
        assert revision(session) > before
        row = session.get_one(ReleaseRow, (1, 1))
        assert (row.replicas, row.state) == (1, "pending")
        before, turn = revision(session), session.get_one(DeploymentRow, 1).used
        releases.wake(session, "team", "d")
        assert revision(session) == before
        assert session.get_one(DeploymentRow, 1).used == turn, "who asks again keeps the turn of who asked first"
    with pytest.raises(NotFound), db.begin() as session:
        releases.wake(session, "other", "d")


def test_labels_are_paired_in_order_and_only_those_that_differ_tell(db: Database) -> None:
    deploy(db, 2, canary=20)
    with db.begin() as session:
        assert take(session, "team", "d", [Label(version="1", score=1.0)] * 3) == 0
        assert take(session, "team", "d", [Label(version="2", score=0.0)] * 2) == 2
        assert take(session, "team", "d", [Label(version="2", score=1.0), Label(version="1", score=0.2)]) == 1
    seen(db)
    trial = shown(db).trial
    assert trial is not None
    assert (trial.evidence["feedback"], trial.evidence["errors"], trial.calls) == ([2, 2], [4, 3], 5)
    with pytest.raises(NotFound, match="serves m@1 and, on trial, m@2"), db.begin() as session:
        take(session, "team", "d", [Label(version="9", score=1)])


def test_labels_that_come_one_by_one_are_paired_too(db: Database) -> None:
    deploy(db, 2, canary=20)
    for number in range(40):
        with db.begin() as session:
            take(session, "team", "d", [Label(version="2" if number % 4 < 2 else "1", score=float(number % 4 > 1))])
    trial = shown(db).trial
    assert trial is not None
    assert trial.evidence["feedback"] == [20, 20]


def test_without_a_trial_labels_are_taken_and_judge_nothing(db: Database) -> None:
    with db.begin() as session:
        assert take(session, "team", "d", [Label(version="1", score=1.0)]) == 0
        assert session.query(ObservationRow).count() == 0


def test_a_version_on_trial_is_in_use(db: Database) -> None:
    deploy(db, 2, canary=20)
    with db.read() as session:
        assert service.in_use(session, version(2)) == "deployment 'd'"
        assert service.in_use(session, version(3)) is None


def test_a_version_that_one_may_go_back_to_is_in_use(db: Database) -> None:
    deploy(db, 2)
    settle(db, 2)
    with db.read() as session:
        assert shown(db).previous == "m@1"
        assert service.in_use(session, version(1)) == "deployment 'd'"
    deploy(db, 3)
    settle(db, 3)
    with db.read() as session:
        assert service.in_use(session, version(1)) is None


def test_labels_of_another_model_with_the_same_number_are_told_by_its_name(db: Database) -> None:
    with db.begin() as session:
        request = DeploymentRequest.model_validate({"name": "d", "model": "n@1", "canary": 20})
        service.deploy(session, CALLER, request, replace(version(1), name="n"), CARD)
    with pytest.raises(Invalid, match="Both m@1 and n@1 have the number 1"), db.begin() as session:
        take(session, "team", "d", [Label(version="1", score=1.0)])
    with db.begin() as session:
        assert take(session, "team", "d", [Label(version="m@1", score=1.0), Label(version="n@1", score=0.0)]) == 1
    trial = shown(db).trial
    assert trial is not None
    assert trial.evidence["feedback"] == [1, 1]


def test_a_request_says_how_much_is_wanted() -> None:
    asked = DeploymentRequest(name="d", model="m@1", replicas=2, max_replicas=8)
    assert (asked.options.min_replicas, asked.options.max_replicas) == (2, 8)
    asked = DeploymentRequest(name="d", model="m@1", min_replicas=0)
    assert (asked.options.min_replicas, asked.options.max_replicas) == (0, 1)
    assert CARD.engines == ("onnx", "torch")
