"""The management API of deployments. A route parses, calls one verb, answers; the controller does the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import Request

from modelyard.db import Session
from modelyard.serving import gating, releases, service
from modelyard.serving.feedback import Feedback, take
from modelyard.serving.service import Deployment
from modelyard.serving.types import DeploymentRequest, GateRequest, PromoteRequest
from modelyard.tenancy.router import Caller, Routes, answered
from modelyard.tenancy.types import Principal, Scope

routes = Routes(prefix="/api/deployments", tags=["deployments"])
gates = Routes(prefix="/api/projects", tags=["gate"])


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


@routes.post("/{name}/promote", scope=Scope.write)
def promote(request: Request, caller: Caller, name: str, body: PromoteRequest | None = None) -> Deployment:
    """Have the release on trial answer every call."""
    return _changed(request, caller, name, partial(releases.promote, override=body.override if body else None))


@routes.post("/{name}/rollback", scope=Scope.write)
def roll_back(request: Request, caller: Caller, name: str) -> Deployment:
    """End the trial, if there is one; else go back to the version that was served before."""
    return _changed(request, caller, name, releases.roll_back)


def _changed(request: Request, caller: Principal, name: str, verb: Callable[[Session, Principal, str], None]) -> Deployment:
    state = request.app.state
    with state.db.begin() as session:
        verb(session, caller, name)
        shown = answered(request, service.get(session, caller.project, name))
    state.controller.wake()
    return shown


@routes.post("/{name}/wake", scope=Scope.infer)
def wake(request: Request, caller: Caller, name: str) -> dict[str, Any]:
    """Start a replica of a deployment that is asleep; the gateway asks for it where a call waits."""
    state = request.app.state
    with state.db.begin() as session:
        releases.wake(session, caller.project, name)
    state.controller.wake()
    return {"name": name, "woken": True}


@routes.post("/{name}/feedback", scope=Scope.infer)
def feedback(request: Request, caller: Caller, name: str, body: Feedback) -> dict[str, Any]:
    """Say which answers were right, by the version that gave them; a release on trial is judged by it."""
    with request.app.state.db.begin() as session:
        pairs = take(session, caller.project, name, body.items)
    return {"name": name, "taken": len(body.items), "pairs": pairs}


@routes.delete("/{name}", scope=Scope.write)
def undeploy(request: Request, caller: Caller, name: str) -> dict[str, Any]:
    """End a deployment: calls under way are finished, new ones get 404."""
    with request.app.state.db.begin() as session:
        service.undeploy(session, caller, name)
    request.app.state.controller.wake()
    return {"name": name, "deleted": True}


@gates.get("/{name}/gate", scope=Scope.write)
def show_gate(request: Request, caller: Caller, name: str) -> GateRequest:
    """What a project's variants must be shown to keep, before they are deployed."""
    with request.app.state.db.read() as session:
        gating.check_project(session, caller, name)
        return GateRequest(gate=gating.project_gate(session, name))


@gates.put("/{name}/gate", scope=Scope.admin)
def set_gate(request: Request, caller: Caller, name: str, body: GateRequest) -> GateRequest:
    """Hold a project's variants against the versions they were made from, or no longer."""
    with request.app.state.db.begin() as session:
        return GateRequest(gate=gating.set_project_gate(session, caller, name, body.gate))
