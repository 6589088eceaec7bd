"""Jobs over HTTP, in process: the shapes of the management API, its statuses, and the stream of events."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_office import GATE, Office
from tenancy_web import Web, error

from modelyard.jobs import records
from modelyard.jobs import routes as jobs_routes
from modelyard.jobs.routes import routes
from modelyard.jobs.types import State

FIELDS = {
    *("id", "kind", "config", "inputs", "target", "ranks", "timeout", "state", "error", "created", "started", "finished"),
    *("max_restarts", "resume", "priority", "resources", "position"),
    *("parent", "attempt", "preempted", "progress", "outputs", "facts", "pids", "cpu_seconds", "why"),
}


class Room(Web):
    """The web app with an office behind it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, routes)
        self.office = Office(folder / "office")
        self.office.db.close()
        self.office.db = self.db
        self.office.begin()
        state = self.app.state
        state.kinds, state.executor, state.scheduler = self.office.kinds, self.office.executor, self.office.scheduler


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    GATE.clear()
    room = Room(tmp_path)
    yield room
    room.office.close()


def submit(room: Room, key: str = "team:write", **body: Any) -> Any:
    return room.ask("POST", "/api/jobs", key, json={"kind": "makes", **body})


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


def test_a_job_from_submission_to_its_end(room: Room) -> None:
    answer = submit(room, config={"number": 2}, target={"kind": "model", "name": "m"})
    assert answer.status_code == 201
    job = answer.json()
    assert (job["state"], job["kind"], job["target"]) == ("queued", "makes", {"kind": "model", "name": "m"})
    room.office.finish(job["id"])
    shown = room.ask("GET", f"/api/jobs/{job['id']}", "team:write").json()
    assert set(shown) == FIELDS
    assert (shown["state"], shown["facts"], shown["outputs"][0]["reference"]) == ("succeeded", {"0": {"samples": 2}}, "m@1")
    assert room.ask("GET", "/api/jobs?state=succeeded", "team:write").json() == [shown]
    assert room.ask("GET", "/api/jobs?state=queued", "team:write").json() == []
    underway = room.ask("GET", "/api/jobs/underway", "team:write").json()
    assert underway == {"jobs": [], "counts": {"queued": 0, "starting": 0, "running": 0}}
    events = room.ask("GET", f"/api/jobs/{job['id']}/events?follow=true", "team:write")
    assert events.headers["content-type"] == "application/x-ndjson"
    assert [e.get("state") or e["type"] for e in lines(events.text)] == [
        *("queued", "starting", "running", "report", "output", "succeeded"),
    ]


def test_a_cluster_is_asked_for_its_nodes_before_the_database_is_held(room: Room) -> None:
    seen = room.office.nodes_apart()
    assert submit(room).status_code == 201
    assert seen == [False]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"target": {"kind": "model", "name": "A b"}},
            "'target.name' is \"A b\"; expected 1–63 of a–z, 0–9, '.', '_', '-', the first",
        ),
        ({"configg": {}}, "'configg' is not a field of a job; did you mean 'config'?"),
        ({"config": {"numbr": 1}}, "'numbr' is not an option of 'makes'; did you mean 'number'?"),
    ],
)
def test_a_wrong_field_is_named_in_words(room: Room, asked: dict[str, Any], says: str) -> None:
    answer = submit(room, **asked)
    assert error(answer) == (400, "invalid_request")
    assert answer.json()["error"]["message"].startswith(says)


def test_following_waits_for_the_end(room: Room) -> None:
    job = submit(room, kind="holds").json()["id"]
    room.office.until(lambda: room.office.job(job).state is State.running)

    async def scene() -> str:
        following = asyncio.create_task(room._ask("GET", f"/api/jobs/{job}/events?follow=true&after=1", headers=_key(room)))
        await asyncio.sleep(0.05)
        assert not following.done()
        GATE.set()
        await asyncio.to_thread(room.office.finish, job)
        return (await following).text

    assert [e["state"] for e in lines(asyncio.run(scene()))] == ["starting", "running", "succeeded"]


def test_a_follower_is_woken_by_the_end(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK", "_LAZY"):
        monkeypatch.setattr(jobs_routes, name, 600.0)
    jobs = [submit(room, kind="holds").json()["id"] for _ in range(2)]
    room.office.until(lambda: room.office.job(jobs[0]).state is State.running)

    async def scene() -> None:
        ended, waits = (
            asyncio.create_task(room._ask("GET", f"/api/jobs/{job}/events?follow=true&after=9", headers=_key(room)))
            for job in jobs
        )
        await asyncio.sleep(0.2)
        await asyncio.to_thread(room.ask, "POST", f"/api/jobs/{jobs[0]}/cancel", "team:write")
        await asyncio.to_thread(room.office.finish, jobs[0])
        assert (await asyncio.wait_for(ended, 10)).status_code == 200
        await asyncio.sleep(0.05)
        assert not waits.done(), "another job's end is none of its business"
        waits.cancel()

    asyncio.run(scene())
    assert not room.office.scheduler.followers._waiting


def test_a_follower_whose_key_is_revoked_is_let_go(room: Room) -> None:
    job = submit(room, kind="holds").json()["id"]
    room.office.until(lambda: room.office.job(job).state is State.running)
    key = room.keys["team", "write"].split("_")[1]

    async def scene() -> str:
        following = asyncio.create_task(room._ask("GET", f"/api/jobs/{job}/events?follow=true", headers=_key(room)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(room.ask, "DELETE", f"/api/keys/{key}", "team:admin")
        return (await asyncio.wait_for(following, 10)).text

    assert [e["state"] for e in lines(asyncio.run(scene()))] == ["queued", "starting", "running"]


def _key(room: Room) -> dict[str, str]:
    return {"Authorization": f"Bearer {room.keys['team', 'write']}"}


def test_cancel_answers_the_job(room: Room) -> None:
    job = submit(room).json()["id"]
    assert room.ask("POST", f"/api/jobs/{job}/cancel", "team:write").json()["state"] == "cancelled"
    assert room.ask("POST", f"/api/jobs/{job}/cancel", "team:write").status_code == 200


def test_a_repeated_submission_is_one_job(room: Room) -> None:
    answers = [
        room.ask("POST", "/api/jobs", "team:write", json={"kind": "makes"}, headers={"Idempotency-Key": "once"})
        for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert len(room.ask("GET", "/api/jobs", "team:write").json()) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("GET", ""), ("GET", "/{job}"), ("POST", "/{job}/cancel"), ("GET", "/{job}/events")],
)
def test_every_door_needs_write_and_the_right_project(room: Room, method: str, path: str) -> None:
    url = "/api/jobs" + path.format(job=submit(room).json()["id"])
    assert error(room.ask(method, url, json={"kind": "makes"})) == (401, "invalid_api_key")
    assert error(room.ask(method, url, "team:infer", json={"kind": "makes"})) == (403, "insufficient_scope")
    if "job" in path:
        assert error(room.ask(method, url, "write")) == (404, "not_found")


def test_wrong_bodies_are_refused(room: Room) -> None:
    assert error(submit(room, unknown=1)) == (400, "invalid_request")
    assert error(submit(room, ranks=0)) == (400, "invalid_request")
    assert error(submit(room, kind="mak")) == (404, "not_found")
    assert error(submit(room, target={"kind": "model", "name": "NO/PE"})) == (400, "invalid_request")


def test_events_beyond_a_page_are_all_told(room: Room) -> None:
    job = submit(room).json()["id"]
    with room.db.begin() as session:
        records.append(session, job, None, [("log", {"rank": 0, "text": str(n)}) for n in range(2500)])
    told = lines(room.ask("GET", f"/api/jobs/{job}/events?after=1", "team:write").text)
    assert [event["text"] for event in told] == [str(n) for n in range(2500)]
