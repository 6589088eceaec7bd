"""Keys, projects, usage and audit over HTTP; and that no project reaches into another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenancy_web import Web, error

from modelyard.tenancy import ledger
from modelyard.tenancy.access import KeyRecord, load_keys, load_quotas
from modelyard.tenancy.ledger import UsageEntry
from modelyard.tenancy.quota import Quota


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    web = Web(tmp_path)
    yield web
    web.db.close()


def test_whoami(web: Web):
    answer = web.ask("GET", "/api/whoami", "team:write").json()
    assert answer["project"] == "team"
    assert answer["scope"] == "write"
    assert answer["key"] == web.keys["team", "write"].split("_")[1]


def test_the_life_of_a_key(web: Web):
    made = web.ask("POST", "/api/keys", "team:admin", json={"scope": "infer", "name": "laptop"})
    assert made.status_code == 201
    assert sorted(made.json()) == ["id", "key", "scope"]
    key, text = made.json()["id"], made.json()["key"]
    assert web.ask("GET", "/api/whoami", text).json() == {"project": "team", "key": key, "scope": "infer"}
    listed = {row["id"]: row for row in web.ask("GET", "/api/keys", "team:admin").json()}
    assert listed[key]["name"] == "laptop"
    assert text.rpartition("_")[2] not in str(listed)
    assert web.ask("DELETE", f"/api/keys/{key}", "team:admin").json()["revoked"] is not None
    refused = web.ask("GET", "/api/whoami", text)
    assert error(refused) == (401, "invalid_api_key")
    assert "revoked" in refused.text
    audit = [(row["action"], row["subject"]) for row in web.ask("GET", "/api/audit", "team:admin").json()]
    assert audit == [("key.create", key), ("key.revoke", key)]


def test_a_key_expires(web: Web):
    made = web.ask("POST", "/api/keys", "team:admin", json={"scope": "infer", "expires": 0.2}).json()
    assert web.ask("GET", "/api/whoami", made["key"]).status_code == 200
    expires = {row["id"]: row["expires"] for row in web.ask("GET", "/api/keys", "team:admin").json()}[made["id"]]
    assert abs(datetime.fromisoformat(expires) - datetime.now(UTC)) < timedelta(seconds=5)
    ring = web.app.state.keyring
    with pytest.raises(Exception, match="expired"):
        ring.verify(made["key"], time.time() + 1)


def test_the_quota_of_a_key(web: Web):
    made = web.ask("POST", "/api/keys", "team:admin", json={"scope": "infer", "rate": 2.5}).json()
    quotas = {one.id: one.quota for one in keys_of(web)}
    assert quotas[made["id"]] == Quota(2.5, 3)
    changed = web.ask("PUT", f"/api/keys/{made['id']}/quota", "team:admin", json={"rate": 100, "burst": 200})
    assert (changed.status_code, changed.json()["rate"], changed.json()["burst"]) == (200, 100, 200)
    listed = {row["id"]: row for row in web.ask("GET", "/api/keys", "team:admin").json()}
    assert (listed[made["id"]]["rate"], listed[made["id"]]["burst"]) == (100, 200)
    assert web.ask("PUT", f"/api/keys/{made['id']}/quota", "team:admin", json={}).json()["rate"] is None
    assert {one.id: one.quota for one in keys_of(web)}[made["id"]] is None
    assert error(web.ask("PUT", f"/api/keys/{made['id']}/quota", "admin", json={"rate": 1})) == (404, "not_found")
    told = [row["detail"] for row in web.ask("GET", "/api/audit", "team:admin").json() if row["action"] == "key.quota"]
    assert told == [{"rate": 100, "burst": 200}, {}]


def test_the_quota_of_a_project_is_tightened_by_its_own_and_loosened_by_the_platforms(web: Web):
    def put(by: str, name: str = "team", **quota: float) -> httpx.Response:
        return web.ask("PUT", f"/api/projects/{name}/quota", by, json=quota)

    assert put("team:admin", rate=50, burst=100).json()["rate"] == 50
    assert put("team:admin", rate=40).json()["burst"] == 40
    for looser in ({"rate": 41, "burst": 1}, {"rate": 1, "burst": 41}, {}):
        assert error(put("team:admin", **looser)) == (403, "insufficient_scope")
    assert quotas_of(web) == {"team": Quota(40, 40)}
    assert put("admin", rate=1000).json()["burst"] == 1000
    there, nowhere = put("team:admin", "default", rate=1), put("team:admin", "nosuch", rate=1)
    assert error(there) == error(nowhere) == (404, "not_found")
    assert there.text.replace("default", "nosuch") == nowhere.text
    assert error(put("admin", "nosuch", rate=1)) == (404, "not_found")
    assert put("admin").json()["rate"] is None
    assert quotas_of(web) == {}
    audit = [(row["action"], row["detail"]) for row in web.ask("GET", "/api/audit", "team:admin").json()]
    assert audit == [("project.quota", detail) for detail in (
        {"rate": 50, "burst": 100}, {"rate": 40, "burst": 40}, {"rate": 1000, "burst": 1000}, {}
    )]  # fmt: skip


@pytest.mark.parametrize("quota", [{"rate": 0}, {"rate": -1}, {"burst": 5}, {"rate": 1, "burst": 0}, {"rate": 1e300}])
def test_what_is_no_quota(web: Web, quota: dict):
    key = web.keys["team", "infer"].split("_")[1]
    for path in (f"/api/keys/{key}/quota", "/api/projects/team/quota"):
        assert error(web.ask("PUT", path, "team:admin", json=quota)) == (400, "invalid_request")
    assert error(web.ask("POST", "/api/keys", "team:admin", json={"scope": "infer", **quota})) == (400, "invalid_request")


def keys_of(web: Web) -> list[KeyRecord]:
    with web.db.read() as session:
        return load_keys(session)


def quotas_of(web: Web) -> dict[str, Quota]:
    with web.db.read() as session:
        return load_quotas(session)


@pytest.mark.parametrize(
    "body", [{}, {"scope": "root"}, {"scope": "infer", "expires": -1}, {"scope": "infer", "project": "default"}]
)
def test_wrong_key_requests(web: Web, body: dict):
    assert error(web.ask("POST", "/api/keys", "team:admin", json=body)) == (400, "invalid_request")


@pytest.mark.parametrize("scope", ["infer", "write"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/keys"),
        ("POST", "/api/keys"),
        ("DELETE", "/api/keys/x"),
        ("PUT", "/api/keys/x/quota"),
        ("PUT", "/api/projects/team/quota"),
        ("GET", "/api/audit"),
        ("GET", "/api/projects"),
        ("POST", "/api/projects"),
    ],
)
def test_administration_needs_an_administrator(web: Web, scope: str, method: str, path: str):
    assert error(web.ask(method, path, scope)) == (403, "insufficient_scope")


def test_the_last_administrator_stays(web: Web):
    own = web.keys["team", "admin"].split("_")[1]
    assert error(web.ask("DELETE", f"/api/keys/{own}", "team:admin")) == (409, "conflict")
    assert web.ask("GET", "/api/whoami", "team:admin").status_code == 200


def test_a_new_project_comes_with_its_administrator(web: Web):
    made = web.ask("POST", "/api/projects", "admin", json={"name": "lab"}).json()
    assert made["name"] == "lab"
    assert web.ask("GET", "/api/whoami", made["key"]["key"]).json() == {
        "project": "lab",
        "key": made["key"]["id"],
        "scope": "admin",
    }
    assert [project["name"] for project in web.ask("GET", "/api/projects", "admin").json()] == ["default", "lab", "team"]
    assert error(web.ask("POST", "/api/projects", "admin", json={"name": "lab"})) == (409, "conflict")
    assert error(web.ask("POST", "/api/projects", "admin", json={"name": "a.b"})) == (400, "invalid_request")
    assert [row["action"] for row in web.ask("GET", "/api/audit", made["key"]["key"]).json()] == ["key.create"]
    assert [row["action"] for row in web.ask("GET", "/api/audit", "admin").json()] == ["project.create"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_projects_administrators_make_and_see_no_projects(web: Web, method: str):
    answer = web.ask(method, "/api/projects", "team:admin", json={"name": "mine"})
    assert error(answer) == (403, "insufficient_scope")
    with web.db.read() as session:
        assert ledger.audit_log(session, "mine") == []


def test_usage(web: Web):
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    with web.db.begin() as session:
        for project, calls in (("team", 3), ("default", 100)):
            entry = UsageEntry(
                project=project, source="s", key="k", kind="serving", subject="d", version="m@1", calls=calls, at=moment
            )
            ledger.record(session, [entry])
    (row,) = web.ask("GET", "/api/usage", "team:write").json()
    assert (row["project"], row["subject"], row["calls"]) == ("team", "d", 3)
    assert web.ask("GET", "/api/usage", "team:write", params={"group_by": "kind"}).json()[0]["calls"] == 3
    assert web.ask("GET", "/api/usage", "team:write", params={"since": "2026-01-02T00:00:00Z"}).json() == []
    assert len(web.ask("GET", "/api/usage", "team:write", params={"until": "2026-01-02T01:00:00+01:00"}).json()) == 1
    for wrong in ({"group_by": "project"}, {"since": "2026-01-01"}, {"since": "2026-01-01T00:00:00"}, {"until": "soon"}):
        assert error(web.ask("GET", "/api/usage", "team:write", params=wrong)) == (400, "invalid_request")
    assert error(web.ask("GET", "/api/usage", "team:infer")) == (403, "insufficient_scope")


def test_the_audit_log_pages(web: Web):
    with web.db.begin() as session:
        for number in range(5):
            ledger.audit(session, "team", "k", "did", str(number))
    newest = web.ask("GET", "/api/audit?limit=2", "team:admin").json()
    assert [row["subject"] for row in newest] == ["3", "4"]
    older = web.ask("GET", f"/api/audit?before={newest[0]['id']}", "team:admin").json()
    assert [row["subject"] for row in older] == ["0", "1", "2"]
    for wrong in ("limit=0", "limit=1001", "limit=x", "before=x"):
        assert error(web.ask("GET", f"/api/audit?{wrong}", "team:admin")) == (400, "invalid_request")


verbs = st.lists(
    st.tuples(
        st.sampled_from(["default", "team"]), st.sampled_from(["make", "revoke own", "revoke other", "list", "audit", "use"])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verbs)
def test_whatever_two_projects_do_neither_sees_or_touches_the_other(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, str]]
):
    web = Web(tmp_path_factory.mktemp("two"))
    own = {
        project: {web.keys[project, scope].split("_")[1] for scope in ("infer", "write", "admin")}
        for project in ("default", "team")
    }
    live = {project: [] for project in own}
    for step, (project, verb) in enumerate(done):
        admin, other = f"{project}:admin", "team" if project == "default" else "default"
        if verb == "make":
            made = web.ask("POST", "/api/keys", admin, json={"scope": "infer", "name": project}).json()
            own[project].add(made["id"])
            live[project].append(made)
        elif verb == "revoke own" and live[project]:
            assert web.ask("DELETE", f"/api/keys/{live[project].pop()['id']}", admin).status_code == 200
        elif verb == "revoke other":
            for key in own[other]:
                answer = web.ask("DELETE", f"/api/keys/{key}", admin)
                assert error(answer) == (404, "not_found")
                assert not [known for known in own[other] if known != key and known in answer.text]
        elif verb == "use":
            with web.db.begin() as session:
                ledger.record(
                    session, [UsageEntry(project=project, source=f"{step}", key="k", kind="job", subject=project, calls=1)]
                )
        for asker in own:
            assert {row["id"] for row in web.ask("GET", "/api/keys", f"{asker}:admin").json()} == own[asker]
            assert {row["subject"] for row in web.ask("GET", "/api/usage", f"{asker}:admin").json()} <= {asker}
            assert {row["subject"] for row in web.ask("GET", "/api/audit", f"{asker}:admin").json()} <= own[asker]
            for made in live[asker]:
                assert web.ask("GET", "/api/whoami", made["key"]).json()["project"] == asker
    web.db.close()
