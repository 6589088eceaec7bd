"""Whether there is room for one more replica on the machines there are, who gives way where there is not, and how many threads
it may compute in.

The controller asks before it starts one. What a replica of an artefact takes is measured when it is ready and kept, so that
the second one is admitted by what the first one took. `scaling.make_room` decides; this reads and writes what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import func, select, update

from modelyard.db import Database, Session, bump, now
from modelyard.jobs.types import Node
from modelyard.serving import releases
from modelyard.serving.scaling import Holder, Room, guess, make_room
from modelyard.serving.tables import DeploymentRow, MeasureRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import Health, ReplicaState
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.telemetry import log

_log = log(__name__)
NODE = "local"
_AGAIN = timedelta(seconds=1)
_MIB = 1 << 20
_CALLS = 4 << 30  # bytes that a replica's calls may take beside its model


class Space:
    """The controller's view of all machines together. `machines()`: those that replicas can run on."""

    def __init__(self, db: Database, artefacts: Artefacts, settings: Settings, machines: Callable[[], Sequence[Node]]) -> None:
        self._db, self._artefacts, self._settings, self._machines = db, artefacts, settings, machines
        self._guesses: dict[str, int] = {}

    def make(self, deployment: DeploymentRow, release: ReleaseRow) -> bool:
        """True where one more replica of `release` has room, if need be because others were put to sleep. Where not, the
        release says why, takes over with what found room where that is as many as must be, and is tried again a moment later;
        where only those that are leaving are in its way, at once."""
        with self._db.read() as session:
            held = self._held(session, deployment.id)
            need = self._need(session, deployment.project, release)
            there = session.scalar(select(func.count()).select_from(ReplicaRow)) or 0
        room = self._room()
        asleep = make_room(need, room, held)
        free = not room.replicas or there < room.replicas
        if asleep == []:
            return free
        with self._db.begin() as session:
            if asleep is None:
                row = session.get(ReleaseRow, (release.deployment, release.generation))
                if row is not None:
                    row.error, row.retry_at = _why(need, held, room, deployment.id), now() + _AGAIN
                    row.settled = row.settled or releases.enough(session, row)
                    bump(session)
                return False
            slept = [self._put_to_sleep(session, deployment_id) for deployment_id in asleep]
        return all(slept) and free

    def settings(self, release: ReleaseRow) -> dict[str, int]:
        """What a replica of a release is told at its start."""
        found = {} if release.target_us is None else {"target_us": release.target_us}
        with self._db.read() as session:
            measured = session.get(MeasureRow, (release.artefact, release.engine, NODE))
        if measured is None or not measured.us_a_row:
            return found
        return {**found, "rows": measured.rows, "ns_a_row": round(1000 * measured.us_a_row)}

    def bound(self, release: ReleaseRow) -> int:
        """Bytes of data that a replica may take: twice what was measured and room for its calls, and never more than all
        replicas of a machine may take together; 0 where neither is known."""
        most = max((self._settings.serving_memory or node.room.memory * 3 // 4 for node in self._machines()), default=0)
        with self._db.read() as session:
            measured = session.get(MeasureRow, (release.artefact, release.engine, NODE))
        return most if measured is None or not measured.memory else min(most, 2 * measured.memory + _CALLS)

    def threads(self, deployment: DeploymentRow, release: ReleaseRow) -> int:
        """How many threads one more replica of a release may compute in, beside all those that stay: not those that are
        leaving, nor those that the stable release takes over from."""
        staying = (deployment.stable, deployment.trial)
        with self._db.read() as session:
            there = session.scalars(select(ReplicaRow).where(ReplicaRow.state != ReplicaState.draining)).all()
        before = release.generation == deployment.stable
        left = [row for row in there if before and row.deployment == deployment.id and row.generation not in staying]
        taken = sum(row.threads for row in there) - sum(row.threads for row in left)
        return granted(release.threads, taken, [node.room.cpus for node in self._machines() if not node.away])

    def measured(self, token: str, health: Health) -> None:
        """Keep what a replica that is ready takes, and its best batch."""
        with self._db.begin() as session:
            replica = session.get(ReplicaRow, token)
            release = session.get(ReleaseRow, (replica.deployment, replica.generation)) if replica is not None else None
            if release is None:
                return
            key = {"artefact": release.artefact, "engine": release.engine, "node": NODE}
            row = session.get(MeasureRow, tuple(key.values())) or MeasureRow(**key, memory=0, rows=0, us_a_row=0.0)
            session.add(row)
            row.memory = max(row.memory, min(health.memory, self._largest()))
            batch = health.metadata.get("batch")
            if batch and not row.us_a_row:
                row.rows, row.us_a_row = int(batch["rows"]), float(batch["us_a_row"])

    def _held(self, session: Session, but: int) -> list[Holder]:
        """The deployments that have replicas in memory. Those that are leaving are not counted: they are on their way out."""
        there = select(ReplicaRow.deployment)
        deployments = {row.id: row for row in session.scalars(select(DeploymentRow).where(DeploymentRow.id.in_(there)))}
        releases_here = session.scalars(select(ReleaseRow).where(ReleaseRow.deployment.in_(there)))
        known = {(row.deployment, row.generation): row for row in releases_here}
        rows: dict[int, list[ReplicaRow]] = {}
        for replica in session.scalars(select(ReplicaRow).where(ReplicaRow.state != ReplicaState.draining)):
            rows.setdefault(replica.deployment, []).append(replica)
        return [
            self._holder(session, deployments[key], replicas, known, key != but)
            for key, replicas in rows.items()
            if key in deployments
        ]

    def _holder(
        self,
        session: Session,
        row: DeploymentRow,
        replicas: Sequence[ReplicaRow],
        known: dict[tuple[int, int], ReleaseRow],
        other: bool,
    ) -> Holder:
        needs = [
            self._need(session, row.project, known[row.id, r.generation]) for r in replicas if (row.id, r.generation) in known
        ]
        at = now()
        called = all(r.state == ReplicaState.ready and at - r.changed >= _AGAIN for r in replicas)  # by those who woke it
        yields = called and other and row.trial is None and releases.options_of(row).min_replicas == 0
        return Holder(row.id, sum(needs), len(replicas), row.used.timestamp(), yields)

    def _need(self, session: Session, project: str, release: ReleaseRow) -> int:
        measured = session.get(MeasureRow, (release.artefact, release.engine, NODE))
        if measured is not None and measured.memory:
            return measured.memory
        if release.artefact not in self._guesses:
            files = self._artefacts.manifest(project, release.artefact).files.values()
            self._guesses[release.artefact] = guess(sum(entry.size for entry in files))
        return self._guesses[release.artefact]

    def _put_to_sleep(self, session: Session, deployment: int) -> bool:
        """False where it gives way no more: somebody has just wanted it to stay."""
        row = session.get(DeploymentRow, deployment)
        if row is None or releases.options_of(row).min_replicas or not releases.put_to_sleep(session, row):
            return False
        staying = (ReplicaRow.deployment == deployment) & (ReplicaRow.state != ReplicaState.draining)
        session.execute(update(ReplicaRow).where(staying).values(state=ReplicaState.draining, changed=now()))
        _log.info("put to sleep to make room", deployment=row.name)
        return True

    def _largest(self) -> int:
        """What one replica can take at most."""
        return max((node.room.memory for node in self._machines()), default=0)

    def _room(self) -> Room:
        there = [node.room.memory for node in self._machines() if not node.away]
        limit = self._settings.serving_memory
        return Room(sum(limit or memory * 3 // 4 for memory in there), self._settings.serving_replicas)


def granted(asked: int, taken: int, cores: Sequence[int]) -> int:
    """How many threads a replica is given that asked for so many where others have `taken` some: no more than are left of the
    machine's `cores`, but one. Which of several machines it comes to is not known before: there it is one."""
    return max(1, min(asked, cores[0] - taken)) if len(cores) == 1 else 1


def _why(need: int, held: Sequence[Holder], room: Room, deployment: int) -> str:
    taken, there = sum(one.memory for one in held), sum(one.replicas for one in held)
    limit = f"{room.memory // _MIB} MiB" + (f" and {room.replicas} replicas" if room.replicas else "")
    own = sum(one.replicas for one in held if one.deployment == deployment)
    ours = f" ({own} of this deployment, which answer until the new one does)" if own else ""
    return (
        f"No room for a replica of about {need // _MIB} MiB: {taken // _MIB} MiB in {there} replicas{ours} do not give way, of "
        f"{limit}. Raise serving_memory or serving_replicas, undeploy another, or let others sleep (min_replicas 0)."
    )
