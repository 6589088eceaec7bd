"""From the answer to the data, also through what was deleted, and never larger than it is."""

import hashlib

import pytest

from modelyard.catalogue import service
from modelyard.catalogue.types import Parent
from modelyard.db import Base, Database
from modelyard.storage import FileEntry, Manifest

MANIFEST = Manifest({"file": FileEntry.of(1, [hashlib.sha256(b"x").hexdigest()])})
X = MANIFEST.hash


@pytest.fixture
def session(tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'books.db'}")
    Base.metadata.create_all(db.engine)
    with db.begin() as session:
        service.record_artefact(session, "p", MANIFEST)
        yield session
    db.close()


def add(session, name="m", kind="model", **more):
    return service.register(session, "p", kind=kind, name=name, artefact=X, **more)


def parents(node):
    return [(parent["role"], parent["reference"], parent["hash"]) for parent in node["parents"]]


def test_lineage_reads_from_the_answer_to_the_data(session):
    data = add(session, name="digits", kind="dataset", job="j0")
    model = add(session, job="j1", task="image-classification", parents=[Parent.of("dataset", data)])
    code = Parent("code", "artefact", None, None, "c" * 64)
    small = add(session, job="j2", parents=[Parent.of("model", model), Parent.of("dataset", data), code])
    tree = service.lineage(session, "p", small)
    assert (tree["reference"], tree["hash"], tree["job"], tree["role"]) == ("m@2", X, "j2", None)
    assert parents(tree) == [("model", "m@1", X), ("dataset", "digits@1", X), ("code", f"artefact:{'c' * 64}", "c" * 64)]
    assert (tree["parents"][0]["job"], tree["parents"][0]["task"]) == ("j1", "image-classification")
    assert parents(tree["parents"][0]) == [("dataset", "digits@1", X)]
    assert not tree["parents"][2]["deleted"]


def test_lineage_reads_through_what_was_deleted(session):
    data = add(session, name="digits", kind="dataset", metadata={"owner": "someone"})
    model = add(session, parents=[Parent.of("dataset", data)])
    small = add(session, name="small", parents=[Parent.of("model", model)])
    service.delete(session, "p", "dataset", "digits")
    service.delete(session, "p", "model", "m")
    tree = service.lineage(session, "p", small)
    assert [(n["reference"], n["deleted"]) for n in (tree, tree["parents"][0], tree["parents"][0]["parents"][0])] == [
        ("small@1", False),
        ("m@1", True),
        ("digits@1", True),
    ]


def test_a_tree_is_never_larger_than_its_graph(session):
    last = add(session)
    for _ in range(40):  # doubled at every step: 2**40 paths
        last = add(session, parents=[Parent.of("left", last), Parent.of("right", last)])
    node, count = service.lineage(session, "p", last), 0
    while node["parents"]:
        count += len(node["parents"])
        assert node["parents"][1] == {**node["parents"][1], "repeated": True, "parents": []}
        node = node["parents"][0]
    assert count == 80


def test_a_long_lineage_says_where_it_goes_on(session):
    last = add(session)
    for _ in range(105):
        last = add(session, parents=[Parent.of("model", last)])
    node = service.lineage(session, "p", last)
    while node["parents"]:
        assert "more" not in node
        node = node["parents"][0]
    assert (node["reference"], node["more"]) == ("m@6", True)


def test_a_parent_that_is_not_in_the_books_keeps_its_hash(session):
    model = add(session, parents=[Parent("dataset", "dataset", "gone", 7, "d" * 64)])
    tree = service.lineage(session, "p", model)
    assert parents(tree) == [("dataset", "gone@7", "d" * 64)]
    assert tree["parents"][0]["deleted"]
