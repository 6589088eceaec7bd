"""Projects and keys as verbs: what they make, what they refuse, and that gateways learn of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from modelyard.db import Base, Database, now, revision
from modelyard.errors import Conflict, Invalid, NotFound, Unauthorized
from modelyard.tenancy import service
from modelyard.tenancy.access import KeyRing, load_keys
from modelyard.tenancy.types import Scope

PEPPER = b"p" * 32


@pytest.fixture
def db(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        service.create_project(session, "default")
        service.create_project(session, "team")
    yield database
    database.close()


def ring(db: Database) -> KeyRing:
    with db.read() as session:
        return KeyRing(PEPPER, load_keys(session))


def test_an_empty_database_gets_a_project_and_its_administrator_once(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        made = service.bootstrap(session, PEPPER)
    with database.begin() as session:
        assert service.bootstrap(session, PEPPER) is None
        assert [project["name"] for project in service.projects(session)] == ["default"]
    assert made is not None
    principal = ring(database).verify(made.key, now().timestamp())
    assert (principal.project, principal.scope) == ("default", Scope.admin)
    database.close()


def test_projects(db: Database):
    with db.begin() as session:
        assert service.create_project(session, "a-2")["name"] == "a-2"
    with db.read() as session:
        assert [project["name"] for project in service.projects(session)] == ["a-2", "default", "team"]


@pytest.mark.parametrize("name", ["", "A", "a.b", "../x", "x\n", "x" * 64])
def test_wrong_project_names(db: Database, name: str):
    with db.begin() as session, pytest.raises(Invalid, match="no project name"):
        service.create_project(session, name)


def test_a_project_is_made_once(db: Database):
    with db.begin() as session, pytest.raises(Conflict, match="'team' already"):
        service.create_project(session, "team")


def test_a_key_works_and_is_listed_without_its_secret(db: Database):
    expires = now() + timedelta(hours=1)
    with db.begin() as session:
        made = service.create_key(session, "team", Scope.write, PEPPER, "laptop", expires)
    with db.read() as session:
        (listed,) = service.keys(session, "team")
        assert service.keys(session, "default") == []
    assert {**listed, "created": ""} == {
        "id": made.id, "scope": "write", "name": "laptop", "created": "", "expires": expires.isoformat(), "revoked": None,
        "rate": None, "burst": None,
    }  # fmt: skip
    assert ring(db).verify(made.key, now().timestamp()).project == "team"
    with pytest.raises(Unauthorized, match="expired"):
        ring(db).verify(made.key, expires.timestamp())


def test_the_database_holds_no_usable_key(db: Database):
    with db.begin() as session:
        made = service.create_key(session, "team", Scope.admin, PEPPER)
    stored = b"".join(file.read_bytes() for file in Path(db.engine.url.database).parent.iterdir())
    assert made.id.encode() in stored
    assert made.key.rpartition("_")[2].encode() not in stored


def test_keys_of_unknown_projects_and_of_the_past_are_refused(db: Database):
    with db.begin() as session:
        with pytest.raises(NotFound):
            service.create_key(session, "nobody", Scope.infer, PEPPER)
        with pytest.raises(Invalid, match="in the past"):
            service.create_key(session, "team", Scope.infer, PEPPER, expires=now() - timedelta(seconds=1))


def test_a_revoked_key_is_refused_and_stays_listed(db: Database):
    with db.begin() as session:
        made = service.create_key(session, "team", Scope.infer, PEPPER)
        first = service.revoke_key(session, "team", made.id)
    with db.begin() as session:
        assert service.revoke_key(session, "team", made.id) == first
        assert [key["revoked"] for key in service.keys(session, "team")] == [first["revoked"]]
    with pytest.raises(Unauthorized, match="revoked"):
        ring(db).verify(made.key, now().timestamp())


def test_another_projects_key_cannot_be_revoked_or_seen(db: Database):
    with db.begin() as session:
        made = service.create_key(session, "team", Scope.infer, PEPPER)
        with pytest.raises(NotFound) as caught:
            service.revoke_key(session, "default", made.id)
        assert "There is no key yet" in caught.value.message
    assert ring(db).verify(made.key, now().timestamp()).key == made.id


def test_the_last_administrator_cannot_be_locked_out(db: Database):
    with db.begin() as session:
        first = service.create_key(session, "team", Scope.admin, PEPPER)
        service.create_key(session, "default", Scope.admin, PEPPER)
        service.create_key(session, "team", Scope.write, PEPPER)
        with pytest.raises(Conflict, match="last admin key"):
            service.revoke_key(session, "team", first.id)
        second = service.create_key(session, "team", Scope.admin, PEPPER)
        service.revoke_key(session, "team", first.id)
        with pytest.raises(Conflict, match="last admin key"):
            service.revoke_key(session, "team", second.id)


def test_gateways_learn_of_every_change(db: Database):
    seen = []
    with db.begin() as session:
        seen.append(revision(session))
        made = service.create_key(session, "team", Scope.infer, PEPPER)
        seen.append(revision(session))
        service.revoke_key(session, "team", made.id)
        seen.append(revision(session))
        service.revoke_key(session, "team", made.id)
        seen.append(revision(session))
    assert seen[0] < seen[1] < seen[2] == seen[3]
