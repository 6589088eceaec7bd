"""Every failure leaves in one shape and takes nothing along: no path, SQL, traceback or another tenant's word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi import HTTPException, Query
from prometheus_client import REGISTRY
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tenancy_web import Web, error

from modelyard import errors
from modelyard.errors import Damaged, ModelyardError
from modelyard.tenancy import door
from modelyard.tenancy.routes import Routes
from modelyard.tenancy.types import Scope

CANARY = "canary-/srv/secret/yard.db"


class Body(BaseModel):
    name: str = Field(max_length=5)
    files: dict[str, list[int]] = {}


def failing() -> Routes:
    more = Routes(prefix="/fail")

    @more.get("/ours/{code}", scope=Scope.infer)
    def ours(code: str) -> None:
        raise errors.from_wire(code, "as it was said")

    @more.get("/bug", scope=Scope.infer)
    def bug() -> None:
        raise ZeroDivisionError(CANARY)

    @more.get("/database", scope=Scope.infer)
    def database() -> None:
        raise OperationalError(f"SELECT '{CANARY}'", {"x": CANARY}, Exception(CANARY))

    @more.get("/http/{status}", scope=Scope.infer)
    def http(status: int) -> None:
        raise HTTPException(status, "said by a library")

    @more.post("/body", scope=Scope.infer)
    def body(body: Body, n: Annotated[int, Query(le=3)] = 1) -> None: ...

    return more


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    web = Web(tmp_path_factory.mktemp("web"), failing())
    yield web
    web.db.close()


@pytest.mark.parametrize("cls", list(errors._tree(ModelyardError)), ids=lambda cls: cls.__name__)
def test_each_of_our_errors_arrives_as_it_was_raised(web: Web, cls: type[ModelyardError]):
    answer = web.ask("GET", f"/fail/ours/{cls.code}", "infer")
    assert error(answer) == (door.status(cls()), cls.code)
    received = errors.from_wire(**answer.json()["error"])
    assert type(received) is cls
    assert received.message == "as it was said"


def test_a_bug_is_counted_and_told_as_internal(web: Web, capsys: pytest.CaptureFixture[str]):
    before = REGISTRY.get_sample_value("modelyard_unexpected_errors_total", {"process": "control"}) or 0
    answer = web.ask("GET", "/fail/bug", "infer")
    assert error(answer) == (500, "internal")
    assert "canary" not in answer.text
    assert "Zero" not in answer.text
    assert REGISTRY.get_sample_value("modelyard_unexpected_errors_total", {"process": "control"}) == before + 1
    said = capsys.readouterr()
    assert CANARY in said.out + said.err


def test_what_is_logged_of_a_request_says_which_it_was(web: Web, capsys: pytest.CaptureFixture[str]):
    traced = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x-request-id": "mine"}
    lines = []
    for path, headers in (("bug", traced), ("ours/internal_error", traced), ("bug", {})):
        web.ask("GET", f"/fail/{path}", "infer", headers=headers)
        said = capsys.readouterr()
        lines.append(said.out + said.err)
    assert [("mine" in line, "4bf92f3577b34da6a3ce929d0e0e4736" in line) for line in lines] == [(True, True)] * 2 + [
        (False, False)
    ]


def test_a_database_that_does_not_answer_is_unavailable(web: Web):
    answer = web.ask("GET", "/fail/database", "infer")
    assert error(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "canary" not in answer.text
    assert "SELECT" not in answer.text


def test_a_lost_database_fails_closed(tmp_path):
    web = Web(tmp_path)
    with web.db.begin() as session:
        session.execute(text("DROP TABLE keys"))
        session.execute(text("UPDATE revision SET number = number + 1"))
    assert error(web.ask("GET", "/api/whoami", "admin")) == (503, "unavailable")
    web.db.close()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (403, "insufficient_scope"),
        (404, "not_found"),
        (413, "too_large"),
        (422, "invalid_request"),
        (502, "internal"),
    ],
)
def test_what_the_framework_raises_has_our_shape(web: Web, status: int, code: str):
    assert error(web.ask("GET", f"/fail/http/{status}", "infer")) == (status, code)


def test_a_wrong_path_and_a_wrong_method(web: Web):
    assert error(web.ask("GET", "/api/keys/none/such", "infer")) == (404, "not_found")
    answer = web.ask("PUT", "/fail/bug", "infer")
    assert error(answer) == (405, "invalid_request")
    assert answer.headers["allow"] == "GET"
    assert "it takes GET" in answer.text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "The body is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        (b"nope", "The body is not valid JSON: Expecting value: line 1 column 1 (char 0)."),
        (b'{"name": NaN}', "The body is not valid JSON: "),
        (b"", "body: Field required"),
        (b"[]", "body"),
        (b'{"name": 1}', "body.name"),
        (b'{"name": "canary-too-long"}', "body.name: String should have at most 5"),
        (b'{"name": "a", "files": {"x": [1, "canary"]}}', "body.files.x.1"),
        (b"[" * 100_000, "The body is not valid JSON: it is nested too deeply."),
        (b'{"name": "\xff"}', "The body is not valid JSON: 'utf-8' codec can't decode"),
    ],
)
def test_wrong_bodies_name_the_field_and_repeat_nothing(web: Web, body: bytes, says: str):
    answer = web.ask("POST", "/fail/body", "infer", content=body, headers={"Content-Type": "application/json"})
    assert error(answer) == (400, "invalid_request")
    assert says in answer.json()["error"]["message"]
    assert "canary" not in answer.text


@pytest.mark.parametrize("said", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_that_does_not_say_what_it_is(web: Web, said: dict[str, str]):
    def told(body: bytes) -> str:
        answer = web.ask("POST", "/fail/body", "infer", content=body, headers=said)
        assert error(answer) == (400, "invalid_request")
        return str(answer.json()["error"]["message"])

    assert told(b"nope") == "The body is not valid JSON: Expecting value: line 1 column 1 (char 0)."
    assert told(b'{"name": "a"}') == "The body is JSON that is not said to be: send it with Content-Type: application/json."
    assert "body: Field required" in told(b"")


@pytest.mark.parametrize("said", ["application/json", "application/json; charset=utf-8", "application/patch+json"])
def test_json_goes_by_several_names(web: Web, said: str):
    assert web.ask("POST", "/fail/body", "infer", content=b'{"name": "a"}', headers={"Content-Type": said}).status_code == 200


def test_many_mistakes_make_a_short_message(web: Web):
    many = {"name": "a", "files": {str(i): ["x"] for i in range(1000)}}
    answer = web.ask("POST", "/fail/body?n=4", "infer", json=many)
    assert error(answer) == (400, "invalid_request")
    assert "query.n" in answer.text
    assert "more" in answer.text
    assert len(answer.text) < 1000


def test_no_redirect_is_built_from_a_host(web: Web):
    answer = web.ask("GET", "/api/whoami/", "infer", headers={"Host": "evil.example"})
    assert answer.status_code == 404


def test_damage_is_our_fault():
    assert door.status(Damaged()) == 500
