"""What gateways saw, written down: replicas that are not to be believed leave the routes, and are replaced as lost."""

from __future__ import annotations

from datetime import timedelta

from test_serving_service import deploy, replica

from modelyard.db import Base, Database, now, revision
from modelyard.errors import Crashed
from modelyard.serving.directory import Directory
from modelyard.serving.distrust import distrust
from modelyard.serving.planning import MarkLost, Observed, Patience, Start, Wanted, plan
from modelyard.serving.tables import ReplicaRow
from modelyard.serving.types import DeploymentState, ReplicaState
from modelyard.tenancy import service as tenancy


def test_a_replica_that_lied_leaves_the_routes_at_once(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        tenancy.create_project(session, "team")
    deploy(database, name="a")
    for token in ("r-1", "r-2", "r-3"):
        replica(database, token, 1, deployment=1)
    with database.begin() as session:
        session.get_one(ReplicaRow, "r-3").state = ReplicaState.draining
        before = revision(session)
    distrust(database, {"r-1": "It said -1 units.", "r-3": "It lied, too.", "gone": "It is long gone."})
    with database.read() as session:
        states = {row.token: row.state for row in session.query(ReplicaRow)}
        [route] = Directory().read(session)
        assert revision(session) > before
    assert states == {"r-1": "distrusted", "r-2": "ready", "r-3": "draining"}
    assert [endpoint.token for endpoint in route.endpoints] == ["r-2"]
    database.close()


def test_what_is_distrusted_is_lost_and_another_started():
    at, patience = now(), Patience(timedelta(60))
    liar = Observed("r-1", 1, ReplicaState.distrusted, at, at, 7, None, True, None)
    wanted = [Wanted(1, 1, DeploymentState.ready, None, True)]
    (lost,) = plan(wanted, [liar], at, patience)
    assert isinstance(lost, MarkLost)
    assert isinstance(lost.error, Crashed)
    assert plan(wanted, [], at, patience) == [Start(1, 1)]
