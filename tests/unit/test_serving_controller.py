"""The controller over a database and an executor without processes; what it decides is `planning`'s, `losses`' and
`scaling`'s."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from test_serving_service import CALLER, deploy

from modelyard.db import Base, Database, now
from modelyard.errors import Internal, Unavailable
from modelyard.jobs.types import ProcessStatus
from modelyard.metrics import UNEXPECTED
from modelyard.serving import releases
from modelyard.serving.controller import Controller
from modelyard.serving.directory import Directory
from modelyard.serving.scaling import Room
from modelyard.serving.tables import DeploymentRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Health, ReplicaState
from modelyard.serving.watch import Watch
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.tenancy import service as tenancy
from modelyard.testing import InlineExecutor, MemoryStore

READY = Health(ReplicaState.ready, {"inputs": []}, done=1)


class Processes(InlineExecutor):
    """Replicas that are killed by hand."""

    def kill(self, token: str, code: int = -9) -> None:
        self._replicas[token] = ProcessStatus(token, 7, code)


class Store(Artefacts):
    """Every artefact is there, unless the store is `gone`."""

    gone = False

    def local(self, project: str, artefact: str) -> Path:
        if self.gone:
            raise Unavailable("The object store failed: timed out.")
        return Path("/nowhere")


class Scene:
    """A deployment 'd'. Its replicas say `said`, those in `old` that they are ready; the clock by which they are asked moves by
    hand."""

    def __init__(self, folder: Path, **asked: object) -> None:
        settings = Settings(data=folder, serving_memory=1 << 40)
        self.db, self.clock, self.said = Database(settings.database_url), 0.0, READY
        Base.metadata.create_all(self.db.engine)
        with self.db.begin() as session:
            tenancy.create_project(session, "team")
        self.processes, self.store = Processes(), Store(MemoryStore(), settings.cache)
        self.old: list[str] = []
        self.controller = Controller(self.db, self.store, self.processes, settings, self.probe)
        self.controller._watch = Watch(self.probe, lambda: self.clock)
        self.controller._space._need = lambda *_: 1  # type: ignore[method-assign]
        deploy(self.db, **asked)

    def probe(self, address: str) -> Health:
        return READY if Path(address).parent.name in self.old else self.said

    def tick(self, times: int = 1, *, pauses: bool = True) -> None:
        for _ in range(times):
            self.clock += 1
            if not pauses:
                with self.db.begin() as session:
                    session.query(ReleaseRow).update({"retry_at": None})
            self.controller.tick()

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(40):
            if done():
                return
            self.tick()
        raise AssertionError("it never came to that")

    def release(self, generation: int = 1) -> ReleaseRow:
        with self.db.read() as session:
            return session.get_one(ReleaseRow, (1, generation))

    def replicas(self, state: ReplicaState = ReplicaState.ready) -> list[str]:
        with self.db.read() as session:
            return [row.token for row in session.query(ReplicaRow) if row.state == state]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Two replicas are ready, and have answered."""
    made = Scene(tmp_path, replicas=2)
    made.until(lambda: made.release().settled)
    assert len(made.replicas()) == 2
    yield made
    made.db.close()


def test_replicas_that_are_killed_again_and_again_are_replaced_at_once(scene: Scene) -> None:
    for _ in range(12):
        scene.tick()
        scene.processes.kill(scene.replicas()[0])
        scene.tick()
        assert len(scene.replicas()) == 1
        assert scene.release().state == DeploymentState.ready
        scene.tick(2)
        assert len(scene.replicas()) == 2


@pytest.mark.parametrize("what", ["is killed", "says why it cannot load", "finds no store"])
def test_a_release_that_serves_does_not_fail_where_a_new_replica(scene: Scene, what: str) -> None:
    killed, *scene.old = scene.replicas()
    scene.processes.kill(killed)
    scene.said = replace(READY, state=ReplicaState.starting)
    scene.store.gone = what == "finds no store"
    for _ in range(5):
        scene.tick(2, pauses=False)
        if what == "is killed":
            scene.processes.kill(scene.replicas(ReplicaState.starting)[0])
        elif what == "says why it cannot load":
            scene.said = replace(READY, state=ReplicaState.starting, error=Internal("no luck"))
    assert (scene.release().state, scene.replicas()) == (DeploymentState.ready, scene.old)
    scene.store.gone, scene.said = False, READY
    scene.tick(3, pauses=False)
    assert len(scene.replicas()) == 2


def test_a_store_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.store.gone = True
    scene.tick(5, pauses=False)
    found = scene.release()
    assert (found.state, found.failures, found.error) == ("pending", 0, "The object store failed: timed out.")
    scene.db.close()


def test_what_cannot_be_looked_up_in_the_store_holds_no_other_deployment_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    deploy(scene.db, name="e")

    def need(session: object, project: str, release: ReleaseRow) -> int:
        if release.deployment == 1:
            raise Unavailable("The object store failed: timed out.")
        return 1

    scene.controller._space._need = need  # type: ignore[method-assign,assignment]
    scene.tick(2)
    assert len(scene.replicas()) == 1
    assert scene.release().error == "The object store failed: timed out."
    scene.db.close()


def test_that_the_supervisor_has_ended_is_a_line_in_the_log_and_no_accident(tmp_path, capsys):
    stop = threading.Event()

    class Ended(InlineExecutor):
        def replicas(self):
            stop.set()
            raise Unavailable("The supervisor does not answer.")

    settings, unexpected = Settings(data=tmp_path), UNEXPECTED.labels("controller")
    db, before = Database(settings.database_url), unexpected._value.get()
    controller = Controller(db, Artefacts(MemoryStore(), settings.cache), Ended(), settings, lambda address: None)
    controller.wake()
    controller.run(stop)
    db.close()
    told = "".join(capsys.readouterr())
    assert "The supervisor does not answer." in told
    assert "Traceback" not in told
    assert unexpected._value.get() == before


def test_where_calls_are_refused_for_the_target_there_are_more_replicas(tmp_path: Path) -> None:
    """Ten of 10 ms are let in at a time, and half as many again are refused: one replica's queue never grows."""
    scene = Scene(tmp_path, max_replicas=3, latency_target=0.1)
    told = replace(READY, metadata={"batch": {"rows": 1, "us_a_row": 10_000.0}}, depth=9)
    scene.said = told
    scene.tick(3)
    assert scene.release().replicas == 1
    for _ in range(3):
        scene.said = told = replace(told, done=told.done + 100, refused=told.refused + 50)
        scene.tick()
    assert scene.release().replicas > 1
    scene.db.close()


def try_out(folder: Path, said: Health) -> Scene:
    """A canary beside what serves; its replicas say `said`."""
    scene = Scene(folder)
    scene.tick(3)
    scene.old, scene.said = scene.replicas(), said
    deploy(scene.db, 2, canary=20)
    scene.tick(3)
    assert len(scene.replicas()) == 2
    return scene


def note(scene: Scene) -> tuple[int | None, str | None]:
    with scene.db.read() as session:
        row = session.get_one(DeploymentRow, 1)
        return row.trial, row.note


@pytest.mark.parametrize(
    ("done", "most", "why"),
    [
        (0, 5, "m@2: Rolled back. The canary lost 5 replicas in a row that had not answered a call."),
        (1, 10, "m@2: Rolled back. Of 10 replicas that were lost meanwhile 10 were the canary's; half would be its part."),
    ],
)
def test_a_canary_whose_replicas_crash_again_and_again_is_taken_back(tmp_path: Path, done: int, most: int, why: str) -> None:
    scene = try_out(tmp_path, replace(READY, done=done))
    for lost in range(most):
        assert note(scene) == (2, None), lost
        [tried] = set(scene.replicas()) - set(scene.old)
        scene.processes.kill(tried, 139)
        scene.tick(4, pauses=False)
    assert note(scene) == (None, why)
    assert scene.replicas() == scene.old
    scene.db.close()


def test_where_both_lose_replicas_alike_the_canary_stays(tmp_path: Path) -> None:
    scene = try_out(tmp_path, READY)
    for _ in range(15):
        for token in scene.replicas():
            scene.processes.kill(token)
        scene.tick(3)
    assert note(scene) == (2, None)
    scene.db.close()


def room(scene: Scene, replicas: int) -> None:
    scene.controller._space._room = lambda: Room(0, replicas)  # type: ignore[method-assign]


def of(scene: Scene, generation: int) -> int:
    """How many replicas of a release are ready."""
    with scene.db.read() as session:
        return session.query(ReplicaRow).filter_by(generation=generation, state=ReplicaState.ready).count()


def grown(folder: Path, replicas: int) -> Scene:
    """A release that was scaled, and has been so for long."""
    scene = Scene(folder, max_replicas=8)
    with scene.db.begin() as session:
        session.query(ReleaseRow).update({"replicas": replicas})
    scene.until(lambda: scene.release().settled)
    assert of(scene, 1) == replicas
    return scene


def long_ago(scene: Scene) -> None:
    called(scene, 0)
    scene.controller._began -= timedelta(hours=1)
    with scene.db.begin() as session:
        session.query(DeploymentRow).update({"updated": now() - timedelta(hours=1)})


def test_what_has_grown_is_followed_by_as_many_and_they_stay_until_the_load_was_seen(tmp_path: Path) -> None:
    scene = grown(tmp_path, 4)
    scene.said = replace(READY, state=ReplicaState.starting)
    scene.old = scene.replicas()
    deploy(scene.db, 2, max_replicas=8)
    scene.tick(3)
    assert (of(scene, 1), of(scene, 2)) == (4, 0)
    scene.said = READY
    scene.until(lambda: scene.release(2).settled)
    scene.tick(2)
    assert (of(scene, 1), of(scene, 2), scene.release(2).settled) == (0, 4, True)
    long_ago(scene)
    scene.tick(2)
    assert scene.release(2).replicas == 1
    scene.db.close()


def test_where_both_have_no_room_the_new_release_takes_over_with_what_found_some(tmp_path: Path) -> None:
    scene = grown(tmp_path, 4)
    room(scene, 6)
    deploy(scene.db, 2, max_replicas=8)
    scene.until(lambda: scene.release(2).settled)
    assert (of(scene, 1), of(scene, 2), scene.release(2).settled) == (4, 2, True)
    assert "No room" in str(scene.release(2).error)
    for _ in range(8):
        called(scene, 0)
        scene.tick(2, pauses=False)
    assert (of(scene, 1), of(scene, 2)) == (0, 4)
    found = scene.release(2)
    assert (found.state, found.error, found.settled) == (DeploymentState.ready, None, True)
    scene.db.close()


def test_fewer_than_must_be_do_not_take_over(tmp_path: Path) -> None:
    scene = grown(tmp_path, 4)
    room(scene, 6)
    deploy(scene.db, 2, min_replicas=3, max_replicas=8)
    scene.tick(8, pauses=False)
    assert (of(scene, 1), of(scene, 2), scene.release(2).settled) == (4, 2, False)
    scene.db.close()


@pytest.mark.parametrize(("kind", "sizes"), [("canary", (8, 4)), ("shadow", (6, 3))])
def test_what_a_canary_answers_asks_for_replicas_and_what_a_shadow_is_shown_does_not(
    tmp_path: Path, kind: str, sizes: tuple[int, int]
) -> None:
    """Each replica holds six calls: eight 48, and four on trial 24, which of a canary others would have."""
    scene = grown(tmp_path, 8)
    scene.said = replace(READY, depth=6)
    deploy(scene.db, 2, **{kind: 50})
    scene.until(lambda: of(scene, 2) == 4)
    scene.tick()
    long_ago(scene)
    with scene.db.begin() as session:  # those on trial are new
        session.query(ReplicaRow).filter_by(generation=2).update({"changed": now()})
    scene.tick()
    assert (scene.release(1).replicas, scene.release(2).replicas) == (8, 4)
    called(scene, 0)
    scene.tick()
    assert (scene.release(1).replicas, scene.release(2).replicas) == sizes
    scene.db.close()


@pytest.mark.parametrize(("ready", "least", "takes_over"), [(2, 1, True), (1, 1, False), (2, 3, False)])
def test_where_replicas_are_lost_again_and_again_the_others_take_over_if_they_are_enough(
    tmp_path: Path, ready: int, least: int, takes_over: bool
) -> None:
    scene = grown(tmp_path, 3)
    scene.old = scene.replicas()
    deploy(scene.db, 2, min_replicas=least, max_replicas=8)
    scene.until(lambda: of(scene, 2) == ready)
    scene.old, scene.said = scene.replicas(), replace(READY, state=ReplicaState.starting)
    for _ in range(4):
        scene.tick(4, pauses=False)
        scene.processes.kill(scene.replicas(ReplicaState.starting)[0])
    assert (of(scene, 1), of(scene, 2), scene.release(2).settled) == (0 if takes_over else 3, ready, takes_over)
    assert "killed by signal 9" in str(scene.release(2).error)
    scene.db.close()


@pytest.mark.parametrize("how", ["deployed again", "scaled down"])
def test_that_there_is_no_room_is_forgotten_where_fewer_are_wanted(tmp_path: Path, how: str) -> None:
    scene = Scene(tmp_path, max_replicas=3)
    with scene.db.begin() as session:
        session.query(ReleaseRow).update({"replicas": 3})
    room(scene, 2)
    scene.until(lambda: scene.release().error is not None)
    assert "No room" in str(scene.release().error)
    if how == "deployed again":
        deploy(scene.db, replicas=2)
    else:
        with scene.db.begin() as session:
            session.query(ReleaseRow).update({"replicas": 2})
    scene.tick()
    found = scene.release()
    assert (found.state, found.error, found.retry_at, found.settled) == (DeploymentState.ready, None, None, True)
    assert len(scene.replicas()) == 2
    assert not scene.controller.tick(), "nothing is on its way"
    scene.db.close()


def test_what_nobody_asks_for_any_more_gives_its_place_up(tmp_path: Path) -> None:
    """The first release was replaced before it served: it is forgotten while its replica loads."""
    scene = Scene(tmp_path)
    room(scene, 1)
    scene.said = replace(READY, state=ReplicaState.starting)
    scene.tick(2)
    deploy(scene.db, 2)
    scene.said = READY
    for _ in range(6):
        scene.tick(pauses=False)
        called(scene, 0)
    assert (of(scene, 1), of(scene, 2)) == (0, 1)
    scene.db.close()


def called(scene: Scene, minutes: float) -> None:
    """All deployments were called last so long from now, and all replicas became what they are long ago."""
    with scene.db.begin() as session:
        session.query(DeploymentRow).update({"used": now() + timedelta(minutes=minutes)})
        session.query(ReplicaRow).update({"changed": now() - timedelta(hours=1)})


def unfinished(folder: Path, why: str, **asked: object) -> Scene:
    """Version 1 answers, beside version 2 that has failed or finds no room."""
    scene = Scene(folder, min_replicas=0, **asked)
    called(scene, 1)
    scene.tick(3)
    scene.old, scene.said = scene.replicas(), replace(READY, state=ReplicaState.starting, error=Internal("no luck"))
    if why == "no room":
        scene.controller._space._room = lambda: Room(0, 1)  # type: ignore[method-assign]
    deploy(scene.db, 2, min_replicas=0, **asked)
    scene.tick(20, pauses=False)
    found = scene.release(2)
    assert (found.state, found.replicas) == ("pending" if why == "no room" else "failed", 1)
    assert found.error is not None
    assert scene.replicas() == scene.old
    scene.said = READY
    return scene


@pytest.mark.parametrize(("why", "version"), [("no luck", "1"), ("no room", "2")])
def test_what_answers_beside_a_release_that_is_not_whole_gives_way_and_a_call_alone_wakes_it(
    tmp_path: Path, why: str, version: str
) -> None:
    scene = unfinished(tmp_path, why)
    scene.controller._space._room = lambda: Room(0, 1)  # type: ignore[method-assign]
    deploy(scene.db, name="e", min_replicas=0)
    for _ in range(8):
        called(scene, 0)
        scene.tick(pauses=False)
    assert scene.release(1).replicas == 0
    assert [scene.release(n).state for n in (1, 2)] == ["asleep", "failed" if why == "no luck" else "asleep"]
    with scene.db.begin() as session:
        assert [row.deployment for row in session.query(ReplicaRow)] == [2]
        releases.wake(session, "team", "d")
    for _ in range(8):
        called(scene, 0)
        scene.tick(pauses=False)
    with scene.db.read() as session:
        routes = {route.deployment: route for route in Directory().read(session)}
    assert (routes["d"].state, routes["d"].version, routes["e"].state) == ("ready", version, "asleep")
    scene.db.close()


def test_what_answers_beside_a_release_that_failed_is_scaled_and_sleeps(tmp_path: Path) -> None:
    scene = unfinished(tmp_path, "no luck", max_replicas=3, idle=1)
    scene.old, scene.said = [], replace(READY, depth=20)
    scene.tick(3)
    assert scene.release(1).replicas > 1
    scene.said = READY
    scene.tick(3)
    called(scene, -1)
    scene.tick()
    assert (scene.release(1).replicas, scene.release(1).state) == (0, DeploymentState.asleep)
    assert (scene.release(2).state, scene.release(2).error) == (DeploymentState.failed, "no luck")
    scene.db.close()


def test_what_answers_does_not_sleep_while_another_release_is_on_its_way(tmp_path: Path) -> None:
    scene = Scene(tmp_path, min_replicas=0, idle=1)
    called(scene, 1)
    scene.tick(3)
    scene.old, scene.said = scene.replicas(), replace(READY, state=ReplicaState.starting)
    deploy(scene.db, 2, min_replicas=0, idle=1)
    called(scene, -1)
    scene.tick(3)
    assert (scene.replicas(), scene.release(1).replicas) == (scene.old, 1)
    scene.db.close()


@pytest.mark.parametrize("ticks", range(8))
def test_who_goes_back_while_the_new_release_takes_over_is_ready_again(tmp_path: Path, ticks: int) -> None:
    """At whatever moment: before the new replicas are ready, when all are, and when the old ones are on their way out."""
    scene = Scene(tmp_path)
    scene.tick(3)
    deploy(scene.db, 2)
    scene.tick(ticks)
    with scene.db.begin() as session:
        releases.roll_back(session, CALLER, "d")
    scene.tick(8)
    assert (scene.release(1).state, scene.release(1).settled) == (DeploymentState.ready, True)
    with scene.db.read() as session:
        [route] = Directory().read(session)
    assert (route.version, route.state) == ("1", DeploymentState.ready)
