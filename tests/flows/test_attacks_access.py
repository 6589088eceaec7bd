"""Attacks on who may ask: routes without a key, confused paths and hosts, foreign pages, SQL, and what a stolen database is
worth. Driven by the live route table: a new route is attacked the day it is added."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time

import pytest
from attack_scene import CALL, CANARY, GATEWAYS, Scene, yard_scene  # noqa: F401 - a fixture
from attack_tools import METHODS, Wire, processes_of
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.app.control import OPEN
from modelyard.tenancy.router import check_routes

# Every path that answers without a key. Nothing else may, ever.
ALLOWED = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
NOWHERE = (
    "/",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/api",
    "/api/",
    "/v2/",
    "/static/x",
    "/.git/config",
    "/admin",
    "/v1/models",
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = (
    "api", "keys", "models", "v2", "health", "live", "healthz", "readyz", "metrics", "projects", CANARY, "infer", "..", ".", "",
    "%2e%2e", "%2E.", "%252e%252e", "%2f", "%5c..", "%00", ";", "..;", "\\", "%", "%zz", "@evil", ":80", "API", "healthz%20",
)  # fmt: skip
SQL = (
    "' OR '1'='1", "'; DROP TABLE key; --", '" OR ""="', "1 OR 1=1", "' UNION SELECT digest FROM key --", "%' OR name LIKE '%",
    "\\'", "1; UPDATE key SET scope=3", "$$;SELECT pg_sleep(5);$$", "') OR randomblob(1000000000) --", "admin'/*", ":id", "?",
    "{}", "%s%s%n", "0x27 OR 1", "\u02bc OR 1=1", "NULL", "*",
)  # fmt: skip


# 1: a route without access


def wrong_credentials(scene: Scene) -> list[list[tuple[str, str]]]:
    key = scene.keys["admin"]
    other = key[:-1] + ("0" if key[-1] != "0" else "1")
    return [
        [],
        [("Authorization", f"Bearer {other}")],
        [("Authorization", f"Basic {key}"), ("Cookie", f"key={key}; Authorization=Bearer {key}")],
        [("Authorization", f"Bearer {key}"), ("x-api-key", other)],
    ]


@pytest.mark.parametrize("door", ["wire", "control"])
def test_no_path_answers_without_a_key(scene: Scene, door: str) -> None:
    wire: Wire = getattr(scene, door)
    paths = {scene.path(path) for _, path, _ in scene.table} | {scene.path(path) for path in GATEWAYS} | {*NOWHERE, "*"}
    assert len(paths) > 40
    credentials = wrong_credentials(scene)
    for number, path in enumerate(sorted(paths - ALLOWED)):
        for other, method in enumerate(METHODS):
            headers = credentials[(number + other) % len(credentials)]  # every kind of path meets every kind of key
            for given_ in ([], headers):
                reply = wire.ask(method, path, given_, key=None)
                assert reply.status in (401, 403), f"{method} {path} with {given_}: {reply}"
                assert CANARY not in reply.body.decode()


def test_the_open_paths_are_those_listed_and_say_nothing(scene: Scene) -> None:
    assert {path for _, path, route in scene.table if route is None} == OPEN
    assert OPEN <= ALLOWED
    for path in ALLOWED:
        for method in METHODS:
            reply = scene.wire.ask(method, path, key=None)
            assert reply.status == (200 if method in ("GET", "HEAD") else 405)
            assert len(reply.body) < 200


def test_a_key_opens_what_its_scope_allows_and_no_more(scene: Scene) -> None:
    for method, path, route in scene.table:
        if route is not None:
            for scope in ("infer", "write"):
                if route.scope.name != scope and not (scope == "write" and route.scope.name == "infer"):
                    reply = scene.wire.ask(method, scene.path(path), key=scene.keys[scope])
                    assert reply.status == 403, f"{method} {path} with a key of scope {scope}: {reply}"


def test_other_methods_are_refused_also_with_a_key(scene: Scene) -> None:
    known = {(method, path) for method, path, _ in scene.table}
    for path in {path for _, path in known}:
        for method in ("PATCH", "OPTIONS", "TRACE", "PROPFIND", "LOCK"):
            assert (method, path) in known or scene.wire.ask(method, scene.path(path)).status == 405


def test_a_websocket_is_never_opened(scene: Scene) -> None:
    shake = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]
    for path in {scene.path(path) for _, path, _ in scene.table} | {scene.path(path) for path in GATEWAYS}:
        reply = scene.wire.ask("GET", path, [("Connection", "Upgrade"), *shake], key=None)
        assert reply.status in ((200,) if path in ALLOWED else (401,))


def test_an_app_with_an_unguarded_route_does_not_start() -> None:
    async def backdoor() -> None: ...

    def websocket(app: FastAPI) -> None:
        app.add_api_websocket_route("/backdoor", backdoor)

    def mount(app: FastAPI) -> None:
        app.mount("/backdoor", FastAPI())

    def plain(app: FastAPI) -> None:
        app.add_api_route("/backdoor", backdoor)

    def low(app: FastAPI) -> None:
        app.add_route("/backdoor", backdoor, methods=["TRACE"])

    for add in (websocket, mount, plain, low):
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        check_routes(app, OPEN)
        add(app)
        with pytest.raises(RuntimeError, match="backdoor"):
            check_routes(app, OPEN)
    with pytest.raises(RuntimeError, match="docs"):
        check_routes(FastAPI(), OPEN)


# 2: host and path confusion


@FEW
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=7),
    tail=st.sampled_from(["", "/", "?", "?a=/healthz", "#", "#/healthz", ";/healthz", "%3f", "%23"]),
    prefix=st.sampled_from(["/", "//", "http://evil/", "http://127.0.0.1/"]),
    method=st.sampled_from(["GET", "POST", "HEAD", "DELETE"]),
)
def test_no_spelling_of_a_path_gets_around_the_key(
    scene: Scene, pieces: list[str], tail: str, prefix: str, method: str
) -> None:
    target = prefix + "/".join(pieces) + tail
    reply = scene.wire.ask(method, target, body=b"", key=None)
    path = re.split(r"[?#]", target.removeprefix("http://evil").removeprefix("http://127.0.0.1"))[0]
    if path in ALLOWED:
        assert reply.status in (200, 405)
    else:
        assert reply.status in (400, 401, 403), f"{method} {target}: {reply}"
    small = scene.wire.ask(method, target, body=b"", key=scene.keys["infer"])
    assert small.status < 500, f"{method} {target}: {small}"
    assert b'"scope":"admin"' not in small.body


@pytest.mark.parametrize(
    "target",
    ["/healthz/../api/keys", "/v2/health/live/../../../api/keys", "/./api/keys", "/api/../api/keys", "/healthz/%2e%2e/api/keys",
     "/api/keys/../../healthz", "//api/keys", "/api//keys", "/api/keys/", "/API/keys", "/api/keys;", "/api/keys%00",
     "/api/keys%2f", "/healthz%2f..%2fapi%2fkeys", "/healthz/", "/metrics/..;/api/keys", "/v2/../metrics", "*"],
)  # fmt: skip
def test_only_a_paths_own_spelling_is_that_path(scene: Scene, target: str) -> None:
    assert scene.wire.ask("GET", target, key=None).status in (400, 401)
    assert scene.wire.ask("GET", target).status in (400, 404)


def test_headers_that_tell_of_another_path_method_or_sender_are_not_believed(scene: Scene) -> None:
    tales = [("X-Original-URL", "/healthz"), ("X-Rewrite-URL", "/healthz"), ("X-Forwarded-Prefix", "/healthz"),
             ("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1;host=localhost"), ("X-Forwarded-Host", "localhost"),
             ("X-HTTP-Method-Override", "GET"), ("X-Forwarded-User", "admin"), ("X-Remote-User", "admin")]  # fmt: skip
    assert scene.wire.ask("GET", "/api/keys", tales, key=None).status == 401
    assert scene.wire.ask("GET", f"/v2/models/{CANARY}", tales, key=None).status == 401
    spoilt = [("X-HTTP-Method-Override", "DELETE"), ("X-HTTP-Method", "DELETE"), ("X-Original-URL", "/api/keys")]
    assert scene.wire.ask("GET", f"/api/models/{CANARY}", spoilt).status == 200
    assert scene.wire.ask("GET", f"/api/models/{CANARY}").status == 200
    assert scene.wire.ask("POST", "/api/keys", tales, b"{}", host="evil.example").status == 403


# 3: foreign pages


def test_a_foreign_page_or_a_rebound_name_changes_nothing(scene: Scene) -> None:
    foreign: list[tuple[str | None, list[tuple[str, str]]]] = [
        ("evil.example", []),
        ("127.0.0.1.evil.example", []),
        ("localhost@evil.example", []),
        ("", []),
        ("[", []),
        *(
            (None, [("Origin", origin)])
            for origin in ("http://evil.example", "null", "", "http://[", "file://", "http://localhost")
        ),
        (None, [("Origin", "http://evil.example"), ("Connection", "origin, authorization")]),
        ("evil.example", [("Connection", "host")]),
    ]
    changing = [(method, scene.path(path)) for method, path, route in scene.table if route and method not in ("GET", "HEAD")]
    assert len(changing) >= 12
    for method, path in changing:
        for host, headers in foreign:
            reply = scene.wire.ask(method, path, headers, host=host)
            # 400 only where these are no headers: a 400 for what is in the body would come after the verdict
            assert reply.status == 403 or b"headers are not valid" in reply.body, (
                f"{method} {path} from {host} {headers}: {reply}"
            )
    assert scene.wire.ask("GET", f"/api/models/{CANARY}", [("Origin", "http://evil.example")]).status == 200


def test_no_page_is_told_that_it_may_read(scene: Scene) -> None:
    ask = [("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST"),
           ("Access-Control-Request-Headers", "authorization")]  # fmt: skip
    for path in {scene.path(path) for _, path, _ in scene.table} | {scene.path(path) for path in GATEWAYS}:
        for method in ("OPTIONS", "GET"):
            reply = scene.wire.ask(method, path, ask)
            assert not [name for name in reply.headers if name.lower().startswith("access-control-")]
            assert not [name for name in reply.headers if name.lower() in ("set-cookie", "location")]


# 6: SQL


def test_sql_is_text_wherever_it_is_given(scene: Scene) -> None:
    before = [scene.owner.keys(), scene.owner.projects(), scene.owner.models(), scene.owner.jobs()]
    # fmt: off
    places = (
        "/api/models/{}", "/api/datasets/{}/versions/{}", f"/api/models/{CANARY}/versions/{{}}", "/api/jobs/{}", "/api/keys/{}",
        "/api/deployments/{}", "/v2/models/{}", "/api/artefacts/{}", "/api/jobs?state={}", "/api/jobs?limit={}",
        "/api/audit?before={}", "/api/usage?group_by={}", "/api/usage?since={}", f"/api/jobs/{scene.job}/events?after={{}}",
    )
    # fmt: on
    began = time.monotonic()
    for text in SQL:
        spelt = "".join(f"%{byte:02x}" for byte in text.encode())
        for place in places:
            for method in ("GET", "DELETE"):
                reply = scene.wire.ask(method, place.replace("{}", spelt))
                assert reply.status in (400, 404, 405), f"{method} {place} {text}: {reply}"
                assert "sqlite" not in reply.body.decode().lower()
        key_id, secret = scene.keys["admin"].split("_")[1:]
        for key in (text, f"my_{text}_{secret}", f"my_{key_id}_{text}", f"my_{key_id}' OR '1'='1_{secret}"):
            for head in ("Authorization", "x-api-key"):
                sent = [(head, f"Bearer {key}" if head == "Authorization" else key)]
                assert scene.wire.ask("GET", "/api/whoami", sent, key=None).status == 401
                assert scene.wire.ask("POST", f"/v2/models/{CANARY}/infer", sent, CALL, key=None).status == 401
        for path, body in (("/api/projects", {"name": text}), ("/api/deployments", {"name": text, "model": CANARY}),
                           ("/api/deployments", {"name": "x", "model": text}), ("/api/jobs", {"kind": text}),
                           ("/api/keys", {"scope": text})):  # fmt: skip
            assert scene.wire.json("POST", path, json.dumps(body).encode()).status in (400, 404)
    assert time.monotonic() - began < 30, "something slept"
    assert before == [scene.owner.keys(), scene.owner.projects(), scene.owner.models(), scene.owner.jobs()]


def test_sql_as_a_name_is_kept_as_it_is(scene: Scene) -> None:
    made = [scene.owner.create_key("infer", name=text) for text in SQL]
    named = {key["id"]: key["name"] for key in scene.owner.keys()}  # noqa: SIM118 — a verb, not a dictionary's
    assert [named[key["id"]] for key in made] == list(SQL)
    for key in made:
        scene.owner.revoke_key(key["id"])


# 20: what is stored of keys


def test_what_is_stored_holds_no_usable_key(scene: Scene) -> None:
    secrets = [key.split("_")[2].encode() for name, key in scene.keys.items() if name != "spare-id"] + [
        scene.stranger[-48:].encode()
    ]
    pepper = (scene.data / "secret").read_text().strip().encode()
    kept = [path for path in scene.data.rglob("*") if path.is_file() and path.name not in ("profile.json", "secret")]
    assert any(path.name == "modelyard.db" for path in kept)
    for path in kept:
        data = path.read_bytes()
        assert not any(secret in data for secret in secrets), f"{path} holds a key"
        assert pepper not in data
    for _, argv in processes_of(scene.data):
        assert not any(secret.decode() in word or pepper.decode() in word for word in argv for secret in secrets)
    for name in ("profile.json", "secret", "modelyard.db", "modelyard.db-wal"):
        assert (scene.data / name).stat().st_mode & 0o077 == 0


def test_a_stolen_digest_is_no_key(scene: Scene) -> None:
    with sqlite3.connect(f"file:{scene.data / 'modelyard.db'}?mode=ro", uri=True) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        (table,) = (name for name in tables if "key" in name and "idem" not in name)
        rows = database.execute(f"SELECT id, digest FROM {table}").fetchall()
    database.close()
    assert len(rows) > 4
    mine = scene.keys["admin"].split("_")
    assert dict(rows)[mine[1]] not in (mine[2], hashlib.sha256(mine[2].encode()).hexdigest())
    for key_id, digest in rows:
        assert scene.wire.ask("GET", "/api/whoami", key=f"my_{key_id}_{digest}").status == 401


def test_an_unknown_id_and_a_wrong_secret_answer_alike(scene: Scene) -> None:
    key_id, secret = scene.keys["admin"].split("_")[1:]
    for path in ("/api/whoami", f"/v2/models/{CANARY}"):
        said = {
            scene.wire.ask("GET", path, key=f"my_{a}_{b}").body for a, b in ((key_id, "0" * 48), ("0" * 12, secret), ("x", "y"))
        }
        assert len(said) == 1
