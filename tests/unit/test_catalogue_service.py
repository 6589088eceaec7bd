"""Numbers, references, aliases and deletion, on a real database."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelyard.catalogue import service
from modelyard.db import Base, Database
from modelyard.errors import Conflict, Invalid, NotFound
from modelyard.storage import FileEntry, Manifest


def manifest(text="x"):
    data = text.encode()
    return Manifest({"file": FileEntry.of(len(data), [hashlib.sha256(data).hexdigest()])})


X = manifest().hash


@pytest.fixture
def db(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'books.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        service.record_artefact(session, "p", manifest())
        service.record_artefact(session, "q", manifest())
    yield database
    database.close()


@pytest.fixture
def session(db):
    with db.begin() as session:
        yield session


def add(session, name="m", project="p", kind="model", **more):
    return service.register(session, project, kind=kind, name=name, artefact=X, **more)


def test_versions_count_up_per_project_kind_and_name(session):
    assert [add(session).reference for _ in range(3)] == ["m@1", "m@2", "m@3"]
    assert add(session, kind="dataset").number == add(session, project="q").number == add(session, name="n").number == 1


def test_a_version_comes_back_as_it_was_registered(session):
    made = add(session, task="image-classification", metadata={"accuracy": 0.97}, job="j1")
    assert service.resolve(session, "p", "model", "m@1") == made
    assert (made.artefact, made.task, made.metadata, made.job) == (X, "image-classification", {"accuracy": 0.97}, "j1")
    assert made.created.tzinfo is not None


def test_writers_at_once_get_different_numbers(db):
    def one(_):
        with db.begin() as session:
            return add(session).number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(one, range(12))) == list(range(1, 13))


def test_a_registration_that_is_rolled_back_leaves_nothing(db):
    def fail():
        with db.begin() as session:
            add(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with db.begin() as session:
        assert add(session).number == 1


@pytest.mark.parametrize("name", ["", "M", "-m", "m@1", "a/b", "m\n", "é", "n" * 64, "../m", "m m"])
def test_bad_names_are_refused(session, name):
    with pytest.raises(Invalid, match="no model name"):
        add(session, name=name)


@pytest.mark.parametrize("metadata", [{"loss": float("nan")}, {"x": float("inf")}, {"x": {1, 2}}])
def test_metadata_that_is_not_json_is_refused(session, metadata):
    with pytest.raises(Invalid, match="JSON"):
        add(session, metadata=metadata)


def test_an_artefact_must_be_recorded_in_this_project(session):
    other = manifest("other")
    service.record_artefact(session, "q", other)
    service.record_artefact(session, "q", other)
    mine = manifest("mine")
    service.record_artefact(session, "p", mine)
    with pytest.raises(NotFound, match=f"No artefact '{other.hash}'.* The newest are: '{mine.hash}'") as caught:
        service.register(session, "p", kind="model", name="m", artefact=other.hash)
    assert caught.value.message.count(other.hash) == 1


def test_references(session):
    add(session), add(session)
    service.set_alias(session, "p", "model", "m", "best", 1)
    resolved = {ref: service.resolve(session, "p", "model", ref).number for ref in ("m", "m@1", "m@2", "m@best")}
    assert resolved == {"m": 2, "m@1": 1, "m@2": 2, "m@best": 1}


@pytest.mark.parametrize(
    "reference", ["m@3", "m@0", "m@01", "m@", "m@-1", "m@1@1", "m@" + "9" * 30, "m@bset", "m@1 ", "m@²", "mm@1"]
)
def test_what_is_not_there_says_what_is(session, reference):
    add(session)
    service.set_alias(session, "p", "model", "m", "best", 1)
    with pytest.raises(NotFound) as caught:
        service.resolve(session, "p", "model", reference)
    assert "'best'" in caught.value.message or "Did you mean 'm'?" in caught.value.message


def test_another_project_sees_nothing(session):
    add(session, name="secret")
    service.set_alias(session, "p", "model", "secret", "best", 1)
    assert service.names(session, "q", "model") == []
    for ask in (
        lambda: service.resolve(session, "q", "model", "secret@best"),
        lambda: service.versions(session, "q", "model", "secret"),
        lambda: service.set_alias(session, "q", "model", "secret", "mine", 1),
        lambda: service.delete(session, "q", "model", "secret"),
        lambda: service.resolve(session, "p", "dataset", "secret"),
    ):
        with pytest.raises(NotFound, match="There is no"):
            ask()


def test_an_alias_moves(session):
    add(session), add(session)
    assert service.set_alias(session, "p", "model", "m", "prod", 1).aliases == ("prod",)
    service.set_alias(session, "p", "model", "m", "best", 2)
    assert service.set_alias(session, "p", "model", "m", "prod", 2).aliases == ("best", "prod")
    assert [version.aliases for version in service.versions(session, "p", "model", "m")] == [(), ("best", "prod")]


@pytest.mark.parametrize("alias", ["", "1", "1st", "A", "a@b", "a/b", "a" * 64, "a\n"])
def test_bad_aliases_are_refused(session, alias):
    add(session)
    with pytest.raises(Invalid, match="no alias"):
        service.set_alias(session, "p", "model", "m", alias, 1)


def test_names_show_the_newest_version_and_all_aliases(session):
    add(session, name="b"), add(session, name="a"), add(session, name="b", task="translation")
    service.set_alias(session, "p", "model", "b", "old", 1)
    service.set_alias(session, "p", "model", "b", "new", 2)
    found = service.names(session, "p", "model")
    assert [(name.latest.reference, name.latest.aliases, name.versions, dict(name.aliases)) for name in found] == [
        ("a@1", (), 1, {}),
        ("b@2", ("new",), 2, {"new": 2, "old": 1}),
    ]
    assert found[1].to_json()["task"] == "translation"


def test_deleting_takes_versions_and_aliases_but_no_number_comes_again(session):
    add(session), add(session)
    service.set_alias(session, "p", "model", "m", "prod", 2)
    assert service.delete(session, "p", "model", "m") == [1, 2]
    assert service.names(session, "p", "model") == []
    for reference in ("m", "m@1", "m@prod"):
        with pytest.raises(NotFound):
            service.resolve(session, "p", "model", reference)
    assert add(session).reference == "m@3"
    assert service.resolve(session, "p", "model", "m").aliases == ()
    with pytest.raises(NotFound):
        service.resolve(session, "p", "model", "m@prod")


def test_one_version_is_deleted_by_itself_and_its_number_never_comes_again(session):
    first, second, third = add(session), add(session), add(session)
    service.set_alias(session, "p", "model", "m", "prod", 2)
    assert service.delete_version(session, "p", "model", "m@3") == third
    assert [version.number for version in service.versions(session, "p", "model", "m")] == [1, 2]
    assert service.resolve(session, "p", "model", "m@prod").number == second.number
    assert add(session).reference == "m@4"
    for reference in ("m@2", "m@prod"):
        with pytest.raises(Conflict, match="'m@prod' points to m@2"):
            service.delete_version(session, "p", "model", reference)
    with pytest.raises(NotFound):
        service.delete_version(session, "p", "model", "m@3")
    with pytest.raises(Conflict, match="m@1 is in use: m@1 by deployment 'd'"):
        service.delete_version(session, "p", "model", "m@1", lambda *_: "deployment 'd'")
    assert service.resolve(session, "p", "model", first.reference) == first


def test_what_is_in_use_is_not_deleted(session):
    add(session), add(session)

    def in_use(_, version):
        return "deployment 'digits'" if version.number == 2 else None

    with pytest.raises(Conflict, match="m@2 by deployment 'digits'"):
        service.delete(session, "p", "model", "m", in_use)
    assert len(service.versions(session, "p", "model", "m")) == 2
    assert service.delete(session, "p", "model", "m", lambda *_: None) == [1, 2]
