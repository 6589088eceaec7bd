"""The management API of deployments. A route parses, calls one verb, answers; the controller does the rest."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from modelyard.serving import service
from modelyard.serving.service import Deployment
from modelyard.serving.types import DeploymentRequest
from modelyard.tenancy.router import Caller, Routes, answered
from modelyard.tenancy.types import Scope

routes = Routes(prefix="/api/deployments", tags=["deployments"])


@routes.post("", scope=Scope.write)
def deploy(request: Request, caller: Caller, body: DeploymentRequest) -> Deployment:
    """Create a deployment, or move one to another version. Answers at once; follow its `state`."""
    state = request.app.state
    with state.db.read() as session:
        version = service.resolve(session, caller.project, body.model)
    card = service.read_card(state.artefacts, caller.project, version)
    with state.db.begin() as session:
        shown = answered(request, service.deploy(session, caller, body, version, card))
    state.controller.wake()
    return shown


@routes.get("", scope=Scope.infer)
def listing(request: Request, caller: Caller) -> list[Deployment]:
    """All deployments of the project."""
    with request.app.state.db.read() as session:
        return service.deployments(session, caller.project)


@routes.get("/{name}", scope=Scope.infer)
def show(request: Request, caller: Caller, name: str) -> Deployment:
    """One deployment: what it serves, its state, and its replicas."""
    with request.app.state.db.read() as session:
        return service.get(session, caller.project, name)


@routes.delete("/{name}", scope=Scope.write)
def undeploy(request: Request, caller: Caller, name: str) -> dict[str, Any]:
    """End a deployment: calls under way are finished, new ones get 404."""
    with request.app.state.db.begin() as session:
        service.undeploy(session, caller, name)
    request.app.state.controller.wake()
    return {"name": name, "deleted": True}
