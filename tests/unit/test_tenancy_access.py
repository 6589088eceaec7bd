"""Keys: what a ring accepts, what it refuses and how it says so; and how a live ring follows the database."""

from __future__ import annotations

import hmac
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.db import Base, Database
from modelyard.errors import Forbidden, Unauthorized
from modelyard.tenancy import access, service
from modelyard.tenancy.access import CACHED, KeyRecord, KeyRing, LiveKeyRing, digest, mint, token_of
from modelyard.tenancy.types import Principal, Scope

PEPPER = b"p" * 32
NOW = 1_000_000.0


def make(project: str = "default", scope: Scope = Scope.infer, **options) -> tuple[KeyRecord, str]:
    key_id, secret, text = mint()
    return KeyRecord(key_id, project, scope, digest(PEPPER, secret), **options), text


def why(ring: KeyRing, token: str | bytes, now: float = NOW) -> str:
    with pytest.raises(Unauthorized) as caught:
        ring.verify(token, now)
    return caught.value.message


def test_minted_keys_have_the_documented_form_and_differ():
    key_id, secret, text = mint()
    assert text == f"my_{key_id}_{secret}"
    assert len(secret) == 48
    assert set(key_id + secret) <= set(string.hexdigits.lower())
    assert len({mint()[2] for _ in range(100)}) == 100


def test_the_digest_is_hmac_sha256_and_needs_the_pepper():
    assert digest(PEPPER, "s") == hmac.new(PEPPER, b"s", "sha256").hexdigest()
    assert digest(PEPPER, "s") != digest(b"q" * 32, "s")


def test_a_valid_key_speaks_for_its_project():
    record, text = make("team", Scope.write)
    ring = KeyRing(PEPPER, [record, make()[0]])
    for token in (text, text.encode(), text):
        assert ring.verify(token, NOW) == Principal("team", record.id, Scope.write)


def test_an_unknown_id_and_a_wrong_secret_answer_alike():
    record, text = make()
    ring = KeyRing(PEPPER, [record])
    assert why(ring, f"my_{record.id}_{'0' * 48}") == why(ring, make()[1]) == why(KeyRing(b"other", [record]), text)


def test_only_the_owner_learns_that_a_key_is_expired_or_revoked():
    gone, gone_text = make(revoked=True)
    old, old_text = make(expires=NOW - 1)
    ring = KeyRing(PEPPER, [gone, old])
    assert "revoked" in why(ring, gone_text)
    assert "expired" in why(ring, old_text)
    unknown = why(ring, make()[1])
    assert why(ring, f"my_{gone.id}_x") == why(ring, f"my_{old.id}_x") == unknown


def test_a_key_expires_on_time_although_it_was_verified_a_moment_ago():
    record, text = make(expires=NOW + CACHED / 2)
    ring = KeyRing(PEPPER, [record])
    ring.verify(text, NOW)
    ring.verify(text, NOW + CACHED / 4)
    assert "expired" in why(ring, text, NOW + CACHED / 2)


def test_replacing_the_keys_forgets_what_was_verified():
    record, text = make()
    ring = KeyRing(PEPPER, [record])
    ring.verify(text, NOW)
    ring.replace([replace(record, revoked=True)])
    assert "revoked" in why(ring, text)
    ring.replace([])
    assert "not valid" in why(ring, text)
    ring.replace([replace(record, scope=Scope.admin)])
    assert ring.verify(text, NOW).scope is Scope.admin


def test_a_verified_key_costs_no_digest_for_a_second(monkeypatch: pytest.MonkeyPatch):
    record, text = make()
    ring = KeyRing(PEPPER, [record])
    computed: list[str] = []

    def counted(pepper: bytes, secret: str) -> str:
        computed.append(secret)
        return digest(pepper, secret)

    monkeypatch.setattr(access, "digest", counted)
    for moment in (NOW, NOW + CACHED / 2, NOW + CACHED * 0.99):
        ring.verify(text, moment)
    assert len(computed) == 1
    ring.verify(text, NOW + CACHED)
    ring.verify(text, NOW - 100)  # a clock that jumped back is not trusted either
    assert len(computed) == 3


@given(st.one_of(st.text(max_size=80), st.binary(max_size=80), st.from_regex(r"my_[0-9a-f]{0,12}_.{0,60}")))
def test_nothing_but_a_key_is_accepted(token: str | bytes):
    ring = KeyRing(PEPPER, [make()[0]])
    with pytest.raises(Unauthorized):
        ring.verify(token, NOW)


@pytest.mark.parametrize("have", list(Scope))
@pytest.mark.parametrize("need", list(Scope))
def test_scopes_reach_what_is_below_them(have: Scope, need: Scope):
    if have >= need:
        KeyRing.require(Principal("p", "k", have), need)
    else:
        with pytest.raises(Forbidden, match=f"'{need.name}'.*'{have.name}'"):
            KeyRing.require(Principal("p", "k", have), need)


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [(["Bearer my_a_b"], []), (["bearer  my_a_b "], []), ([b"BEARER my_a_b"], []), ([], ["my_a_b"]), ([], [b" my_a_b"]),
     (["Bearer my_a_b"], ["my_a_b"])],
)  # fmt: skip
def test_where_a_token_may_stand(authorization: list, api_key: list):
    assert token_of(authorization, api_key) == "my_a_b"


@pytest.mark.parametrize(
    ("authorization", "api_key", "says"),
    [
        ([], [], "No API key was given"),
        ([""], [], "malformed"),
        (["Bearer"], [], "malformed"),
        (["Bearer "], [], "malformed"),
        (["Basic bXk6"], [], "malformed"),
        (["my_a_b"], [], "malformed"),
        (["Bearer my_a_b", "Bearer my_c_d"], [], "malformed"),
        (["Bearer my_a_b"], ["my_c_d"], "malformed"),
        (["Bearer my_ä_b"], [], "malformed"),
        ([b"Bearer my_\xff_b"], [], "malformed"),
    ],
)
def test_malformed_headers(authorization: list, api_key: list, says: str):
    with pytest.raises(Unauthorized, match=says):
        token_of(authorization, api_key)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def db(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        service.create_project(session, "default")
    yield database
    database.close()


def issue(db: Database, scope: Scope = Scope.infer) -> tuple[str, str]:
    with db.begin() as session:
        made = service.create_key(session, "default", scope, PEPPER)
    return made.id, made.key


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each look at the revision."""
    seen: list[None] = []
    real = access.revision

    def counted(session) -> int:
        seen.append(None)
        return real(session)

    monkeypatch.setattr(access, "revision", counted)
    return seen


def test_a_new_key_works_at_once(db: Database):
    clock = Clock()
    ring = LiveKeyRing(db, PEPPER, clock)
    _, first = issue(db)
    ring.verify(first, NOW)
    clock.now += 0.1
    key_id, second = issue(db, Scope.admin)
    assert ring.verify(second, NOW) == Principal("default", key_id, Scope.admin)


def test_a_revoked_key_is_refused_within_a_quarter_of_a_second_or_at_once_after_refresh(db: Database):
    clock = Clock()
    ring = LiveKeyRing(db, PEPPER, clock)
    issue(db, Scope.admin)
    (one, one_text), (two, two_text) = issue(db), issue(db)
    ring.verify(one_text, NOW)
    ring.verify(two_text, NOW)
    with db.begin() as session:
        service.revoke_key(session, "default", one)
    clock.now += 0.25
    assert "revoked" in why(ring, one_text)
    with db.begin() as session:
        service.revoke_key(session, "default", two)
    ring.refresh()
    assert "revoked" in why(ring, two_text)


def test_known_keys_look_at_the_database_four_times_a_second(db: Database, looks: list[None]):
    clock = Clock()
    ring = LiveKeyRing(db, PEPPER, clock)
    _, text = issue(db)
    for _ in range(1000):
        ring.verify(text, NOW + clock.now)
        clock.now += 0.001
    assert len(looks) == 4


def test_guessing_cannot_hammer_the_database(db: Database, looks: list[None]):
    clock = Clock()
    ring = LiveKeyRing(db, PEPPER, clock)
    for _ in range(1000):
        assert "not valid" in why(ring, make()[1])
        clock.now += 0.001
    assert len(looks) <= 52
