"""A gateway with real keys and routes whose router keeps the calls in a list, to be answered by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.serving.follower import State
from modelyard.serving.frames import EndFrame, Fault, Usage
from modelyard.serving.gateway import Gateway
from modelyard.serving.meter import Counters, Meters
from modelyard.serving.types import DeploymentState, Endpoint, Route
from modelyard.settings import Settings
from modelyard.tenancy.access import KeyRecord, KeyRing, digest
from modelyard.tenancy.types import Scope

PEPPER = b"p" * 32
SECRET = "s" * 48
KEY = f"my_k1_{SECRET}"
HERE = (Endpoint("t", "/nowhere"),)


def record(key: str = "k1", project: str = "team", scope: Scope = Scope.infer, **fields: Any) -> KeyRecord:
    return KeyRecord(key, project, scope, digest(PEPPER, SECRET), **fields)


def route(deployment: str = "digits", project: str = "team", **fields: Any) -> Route:
    given: dict[str, Any] = {
        "model": "cnn",
        "version": "3",
        "state": DeploymentState.ready,
        "endpoints": HERE,
        "metadata": {"platform": "onnx", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "outputs": []},
    }
    return Route(project=project, deployment=deployment, **{**given, **fields})


class FakeLink:
    def __init__(self) -> None:
        self.depth, self.cancelled, self.state = 0, [], "ready"

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call.frame.id)


class FakeGroup:
    gone = up = False

    def __init__(self, links: list[FakeLink]) -> None:
        self.links = links

    @property
    def newest(self) -> Any:
        return self


class FakeRouter:
    """`sent` holds what was sent; `answer` and `fail` end a call."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.link = FakeLink()
        self.numbers = 0

    def group(self, endpoints: Any) -> Any:
        return FakeGroup([self.link for _ in endpoints])

    def keep(self, endpoints: Any) -> None: ...

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def send(self, call: Any) -> None:
        call.link = self.link
        self.sent.append(call)

    def answer(self, call: Any, body: bytes = b"{}", head: dict[str, str] | None = None, units: int = 1) -> None:
        call.part(body, head)
        end = EndFrame(call.frame.id, Usage(units, 7), 0)
        call.ended(end.usage, end.error)

    def fail(self, call: Any, code: str, message: str = "said so") -> None:
        call.ended(Usage(0, 3), Fault(code, message))


class Bench:
    """A gateway, its router, and what its meter counted."""

    def __init__(self, folder: Path, keys: Any = None, routes: Any = None, **settings: Any) -> None:
        self.router = FakeRouter()
        self.meters = Meters(folder / "meters", lambda _: None, lambda _: {}, lambda _: None)
        self.settings = Settings(data=folder, **settings)
        self.gateway = Gateway(KeyRing(PEPPER), (), self.router, self.meters, self.settings)  # type: ignore[arg-type]
        self.gateway.apply(State(1, [record()] if keys is None else keys, [route()] if routes is None else routes))

    def counted(self) -> list[Counters]:
        return [counters for file in self.meters._files for _, counters in file.read().values()]


class FakeFollower:
    """Looks when told: `apply` is done before each look's callbacks."""

    def __init__(self, apply: Any = lambda: None, age: float = 0.0) -> None:
        self.apply, self.age, self.asked = apply, age, []

    def refresh(self, done: Any) -> None:
        self.asked.append(done)

    def look(self, seen: bool = True) -> None:
        if seen:
            self.apply()
        asked, self.asked = self.asked, []
        for done in asked:
            done(seen)
