"""A repeated POST takes effect once: after success, failure, a crash, and against a copy of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import select
from tenancy_web import Web, error

from modelyard.db import Database, joined, now
from modelyard.errors import Conflict, Forbidden, Unavailable
from modelyard.tenancy import idempotency, ledger
from modelyard.tenancy.idempotency import KEPT, TAKEOVER, Answer, Slot
from modelyard.tenancy.routes import Caller, Routes, answered
from modelyard.tenancy.tables import Idempotency
from modelyard.tenancy.types import Scope


class Item(BaseModel):
    name: str = "x"
    made: datetime | None = None


def counting() -> Routes:
    """Routes whose effect is an entry of the audit log."""
    more = Routes(prefix="/do")

    def act(request: Request, caller: Caller, what: str) -> int:
        with request.app.state.db.begin() as session:
            ledger.audit(session, caller.project, caller.key, "act", what)
            return len(ledger.audit_log(session, caller.project, 1000))

    @more.post("/work", scope=Scope.infer, status_code=201)
    def work(request: Request, caller: Caller, item: Item) -> dict[str, int]:
        return {"number": act(request, caller, item.name)}

    @more.post("/things/{thing}", scope=Scope.infer)
    def thing(request: Request, caller: Caller, thing: str) -> dict[str, int]:
        return {"number": act(request, caller, thing)}

    @more.post("/refuse", scope=Scope.infer)
    def refuse(request: Request, caller: Caller) -> None:
        act_then = request.headers.get("x-act")
        if act_then:
            act(request, caller, "before the failure")
        raise Forbidden("not now")

    @more.post("/promise", scope=Scope.infer, status_code=201)
    def promise(request: Request, caller: Caller) -> Item:
        with request.app.state.db.begin() as session:
            ledger.audit(session, caller.project, caller.key, "act", "promise")
            said = answered(request, Item(name="é", made=now()))
        if request.headers.get("x-die"):
            raise KeyboardInterrupt  # nothing catches this: the request ends as if its process had
        return said

    @more.post("/promised-secret", scope=Scope.infer, secret=True)
    def promised_secret(request: Request, caller: Caller) -> dict[str, str]:
        with request.app.state.db.begin():
            return answered(request, {"key": "secret"})

    @more.post("/stream", scope=Scope.infer)
    def stream(request: Request, caller: Caller) -> Response:
        return StreamingResponse(iter([str(act(request, caller, "stream"))]))

    @more.post("/plain", scope=Scope.infer)
    def plain(request: Request, caller: Caller) -> Response:
        return Response(f"n={act(request, caller, 'plain')}".encode(), media_type="text/x-plain")

    return more


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    web = Web(tmp_path, counting())
    yield web
    web.db.close()


def post(web: Web, path: str, key: str = "infer", once: str = "k", **options):
    return web.ask("POST", path, key, headers={"Idempotency-Key": once, **options.pop("headers", {})}, **options)


def acts(db: Database, project: str = "default") -> int:
    with db.read() as session:
        return len(ledger.audit_log(session, project, 1000))


def test_the_same_request_is_answered_from_what_was_said(web: Web):
    first, second = (post(web, "/do/work", json={"name": "a"}) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json() == {"number": 1}
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert first.headers["content-type"] == second.headers["content-type"]
    assert acts(web.db) == 1


def test_any_media_type_is_answered_as_it_was(web: Web):
    first, second = (post(web, "/do/plain") for _ in range(2))
    assert first.content == second.content == b"n=1"
    assert first.headers["content-type"] == second.headers["content-type"]


def test_another_request_under_the_same_key_conflicts(web: Web):
    post(web, "/do/work", json={"name": "a"})
    assert error(post(web, "/do/work", json={"name": "b"})) == (409, "conflict")
    assert error(post(web, "/do/work?x=1", json={"name": "a"})) == (409, "conflict")
    post(web, "/do/things/one")
    assert error(post(web, "/do/things/two")) == (409, "conflict")
    assert acts(web.db) == 2


def test_keys_of_routes_callers_and_projects_are_apart(web: Web):
    for path, key in [("/do/work", "infer"), ("/do/work", "write"), ("/do/work", "team:infer"), ("/do/things/x", "infer")]:
        assert "idempotency-replayed" not in post(web, path, key, json={}).headers
    assert (acts(web.db), acts(web.db, "team")) == (3, 1)


def test_without_the_header_every_request_counts(web: Web):
    for _ in range(2):
        web.ask("POST", "/do/work", "infer", json={})
    assert acts(web.db) == 2


def test_a_request_that_failed_may_be_tried_again_even_corrected(web: Web):
    assert error(post(web, "/do/work", json={"name": 1})) == (400, "invalid_request")
    assert error(post(web, "/do/refuse")) == (403, "insufficient_scope")
    assert error(post(web, "/do/refuse")) == (403, "insufficient_scope")
    assert post(web, "/do/work", json={"name": "a"}).status_code == 201
    assert acts(web.db) == 1


def test_a_request_that_failed_after_it_took_effect_is_not_done_again(web: Web):
    headers = {"x-act": "yes"}
    assert error(post(web, "/do/refuse", headers=headers)) == (403, "insufficient_scope")
    answer = post(web, "/do/refuse", headers=headers)
    assert error(answer) == (409, "conflict")
    assert "was carried out" in answer.text
    assert acts(web.db) == 1


def test_what_was_promised_is_answered_to_the_repeat_byte_for_byte(web: Web):
    first, second = (post(web, "/do/promise", once="p") for _ in range(2))
    assert (second.status_code, second.content, second.headers["content-type"]) == (
        first.status_code,
        first.content,
        first.headers["content-type"],
    )
    assert second.headers["idempotency-replayed"] == "true"
    assert web.ask("POST", "/do/promise", "infer").status_code == 201
    assert acts(web.db) == 2


def test_what_was_promised_is_answered_after_a_death_between_commit_and_answer(web: Web):
    with pytest.raises(KeyboardInterrupt):
        post(web, "/do/promise", headers={"x-die": "yes"})
    repeat = post(web, "/do/promise", headers={"x-die": "yes"})
    assert (repeat.status_code, repeat.json()["name"]) == (201, "é")
    assert repeat.headers["idempotency-replayed"] == "true"
    assert acts(web.db) == 1


def test_a_promised_secret_is_not_kept(web: Web):
    assert [post(web, "/do/promised-secret").status_code for _ in range(2)] == [200, 409]
    with web.db.read() as session:
        assert [row.body for row in session.scalars(select(Idempotency))] == [None]


def test_streams_are_not_kept(web: Web):
    assert [post(web, "/do/stream", once="s").status_code for _ in range(2)] == [200, 409]
    assert acts(web.db) == 1


def test_an_answer_with_a_secret_is_shown_once_and_stored_never(web: Web):
    first = post(web, "/api/keys", "admin", json={"scope": "infer"})
    again = post(web, "/api/keys", "admin", json={"scope": "infer"})
    assert first.status_code == 201
    assert error(again) == (409, "conflict")
    with web.db.read() as session:
        assert all(row.body is None for row in session.scalars(select(Idempotency)))
    key, _, secret = first.json()["key"].removeprefix("my_").partition("_")
    stored = b"".join(file.read_bytes() for file in Path(web.db.engine.url.database).parent.iterdir())
    assert key.encode() in stored
    assert secret.encode() not in stored


@pytest.mark.parametrize("name", ["", "x" * 256, "a\tb"])
def test_wrong_keys_are_refused(web: Web, name: str):
    assert error(post(web, "/do/work", once=name, json={})) == (400, "invalid_request")
    assert acts(web.db) == 0


def test_copies_sent_at_once_take_effect_once(web: Web):
    async def many():
        headers = {"Authorization": f"Bearer {web.keys['default', 'infer']}", "Idempotency-Key": "k"}
        return await asyncio.gather(*(web._ask("POST", "/do/work", headers=headers, json={}) for _ in range(12)))

    answers = asyncio.run(many())
    assert {answer.status_code for answer in answers} <= {201, 409, 503}  # 409: done, and its answer not kept yet
    assert {answer.text for answer in answers if answer.status_code == 201} == {'{"number":1}'}
    assert acts(web.db) == 1


# Below the routes: what a crash leaves behind.


def slot(request: str = "r") -> Slot:
    return Slot("p", "k", "/route", "name", request)


def age(db: Database, by: timedelta, column: str) -> None:
    with db.begin() as session:
        row = session.scalars(select(Idempotency)).one()
        setattr(row, column, now() - by)


def test_a_repeat_waits_for_a_request_under_way(web: Web):
    assert idempotency.claim(web.db, slot()) is None
    with pytest.raises(Unavailable, match="under way"):
        idempotency.claim(web.db, slot())
    with pytest.raises(Conflict, match="another request"):
        idempotency.claim(web.db, slot("other"))


def test_what_a_crash_left_undone_is_taken_over_and_the_old_one_can_no_longer_commit(web: Web):
    old, new = slot(), slot()
    idempotency.claim(web.db, old)
    age(web.db, TAKEOVER, "claimed")
    assert idempotency.claim(web.db, new) is None

    def act(mine: Slot) -> None:
        with joined(mine.confirm), web.db.begin() as session:
            ledger.audit(session, "p", "k", "act", "x")

    act(new)
    with pytest.raises(Conflict, match="took it over"):
        act(old)
    assert acts(web.db, "p") == 1
    idempotency.keep(web.db, new, Answer(200, "text/plain", b"done"))
    idempotency.keep(web.db, old, Answer(200, "text/plain", b"late"))
    idempotency.release(web.db, old)
    assert idempotency.claim(web.db, slot()) == Answer(200, "text/plain", b"done")


def test_a_new_control_does_not_wait_for_what_the_last_one_was_at(web: Web):
    idempotency.claim(web.db, slot())
    with pytest.raises(Unavailable, match="under way"):
        idempotency.claim(web.db, slot())
    idempotency.abandon(web.db)
    assert idempotency.claim(web.db, slot()) is None


def test_what_a_crash_left_done_is_not_done_again(web: Web):
    one = slot()
    idempotency.claim(web.db, one)
    with joined(one.confirm), web.db.begin():
        pass
    idempotency.release(web.db, one)
    age(web.db, TAKEOVER * 2, "claimed")
    with pytest.raises(Conflict, match="was carried out"):
        idempotency.claim(web.db, slot())


def test_answers_are_kept_for_a_day_and_only_if_small(web: Web):
    one = slot()
    idempotency.claim(web.db, one)
    idempotency.keep(web.db, one, Answer(200, None, b"x" * (idempotency.LARGEST_ANSWER + 1)))
    with pytest.raises(Conflict, match="was carried out"):
        idempotency.claim(web.db, slot())
    age(web.db, KEPT + timedelta(seconds=1), "created")
    assert idempotency.claim(web.db, slot()) is None
