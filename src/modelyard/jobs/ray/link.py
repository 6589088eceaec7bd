"""Control's end of the conversation with one node: words to its gangs and replicas, and a thread that hears what they say.

The executor holds one for each node that something runs on. A node that cannot be reached for a while, or whose actor is gone,
is lost: the link says so, once, and is thrown away.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from modelyard import __version__
from modelyard.errors import Crashed, ModelyardError, Unavailable, from_wire
from modelyard.jobs.ray import cluster
from modelyard.jobs.ray.cluster import Machine, Remote, Said
from modelyard.jobs.ray.placement import Placed
from modelyard.jobs.types import Event
from modelyard.telemetry import log

_log = log(__name__)

# Seconds a node may need for an answer, for its first one, and be out of reach before it counts as lost.
_ANSWER, _FIRST, _PATIENCE = 30.0, 60.0, 20.0
# Seconds that a node keeps the question open whether there is news, and between two tries to reach it.
_OPEN, _PAUSE = 2.0, 0.25
# Seconds that the question for a node's replicas waits for an answer: what is late is taken next time.
_LISTING = 1.0


class Link:
    """`heard(token, event)` is called with what gangs say, `lost(link)` once; both in the link's thread, which `listen` starts.
    `gateway`: the certificate (PEM) by which gateways on another machine are known there. `wrong`: by token what had gone wrong
    with the gangs that an earlier control left here. `silent`: it did not tell of its replicas when it was last asked."""

    def __init__(
        self,
        machine: Machine,
        remote: Remote,
        heard: Callable[[str, Event], None],
        lost: Callable[[Link], None],
        gateway: str = "",
    ) -> None:
        self.machine, self._remote = machine, remote
        self._heard, self._lost = heard, lost
        self._holder = secrets.token_hex(8)
        self._pending: list[tuple[bytes, Said]] = []
        self._lock = threading.Lock()
        self._closed = False
        self.silent = False
        self._listing: Said | None = None
        self._listed: dict[str, Placed] | None = None
        taken = self._answer(remote.ask(_wire({"do": "take", "holder": self._holder, "gateway": gateway})), _FIRST)
        if taken["version"] != __version__:
            theirs = f"The node {machine.name} has Modelyard {taken['version']}, control {__version__}"
            raise Unavailable(f"{theirs}: install the same on all nodes, and start Ray there anew.")
        self.wrong = {token: from_wire(error["code"], error["message"]) for token, error in taken["wrong"].items()}
        self._thread = threading.Thread(target=self._run, name=f"link to {machine.name}", daemon=True)

    def listen(self) -> None:
        """Begin to hear, once it is known where this link is found."""
        self._thread.start()

    def ask(self, **message: Any) -> Any:
        """Wait for an answer. Raises the node's error, or `Unavailable`."""
        try:
            return self._answer(self._remote.ask(_wire({**message, "holder": self._holder})), _ANSWER)
        except Crashed as error:
            raise Unavailable(f"The node {self.machine.name} is lost.") from error

    def start_replica(self, spec: Mapping[str, Any], gateway: str) -> None:
        """Start a replica there. Raises the node's error, or `Unavailable`."""
        listed = self.replicas()
        self._listing = None  # who was asked before may not know of it
        placed = Placed(*self.ask(do="start_replica", spec=spec, gateway=gateway))
        self._listed = {**listed, placed.token: placed}

    def replicas(self) -> Mapping[str, Placed]:
        """Those on the node; of one that does not answer at once, what it said last: until it is lost they may well run. Raises
        `Unavailable` where it has never said anything."""
        try:
            if self._listing is None:
                self._listing = self._remote.ask(_wire({"do": "replicas"}))
            if cluster.wait([self._listing], _LISTING):
                answered, self._listing = self._listing, None
                self._listed = {one[0]: Placed(*one) for one in self._answer(answered, _ANSWER)}
                self.silent = False
                return self._listed
        except (Unavailable, Crashed) as error:
            _log.warning("a node does not tell of its replicas", node=self.machine.name, error=error.message)
        self.silent = True
        if self._listed is None:
            raise Unavailable(f"The node {self.machine.name} does not tell of its replicas.")
        return self._listed

    def tell(self, **message: Any) -> None:
        """Say something to a gang, without waiting; it arrives, or the node is lost."""
        wire = _wire({**message, "holder": self._holder})
        with self._lock:
            self._pending.append((wire, self._remote.ask(wire)))

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        self._thread.join(2 * _OPEN)

    def _answer(self, said: Said, patience: float) -> Any:
        answer = json.loads(said.get(patience))
        if error := answer.get("error"):
            raise from_wire(error["code"], error["message"])
        return answer["value"]

    def _run(self) -> None:
        try:
            self._listen()
        except Exception:  # noqa: BLE001 — the edge of the thread: a node that is not listened to is lost
            if not self._closed:
                _log.exception("the link to a node broke", node=self.machine.name)
        finally:
            if not self._closed:
                self._lost(self)

    def _listen(self) -> None:
        heard, reached = 0, time.monotonic()
        question = self._remote.hear(self._holder, heard, _OPEN)
        while not self._closed and time.monotonic() - reached < _PATIENCE:
            with self._lock:
                pending = list(self._pending)
            ready = cluster.wait([question, *(said for _, said in pending)], _OPEN)
            try:
                if question in ready:
                    heard = self._take(question.get(_ANSWER), heard)
                    reached = time.monotonic()
                    question = self._remote.hear(self._holder, heard, _OPEN)
                for wire, said in pending:
                    if said in ready:
                        self._confirm(wire, said)
            except Unavailable:
                time.sleep(_PAUSE)
                question = self._remote.hear(self._holder, heard, _OPEN)
            except ModelyardError:
                break

    def _take(self, lines: bytes, heard: int) -> int:
        """Pass on what was said; the number of the last line. Raises `Crashed` where the node is no longer ours."""
        if lines == b"gone":
            raise Crashed("The node is in the hands of another control.")
        for line in lines.splitlines():
            said = json.loads(line)
            heard = said["seq"]
            self._heard(said["token"], Event(said["type"], said["body"]))
        return heard

    def _confirm(self, wire: bytes, said: Said) -> None:
        """What was told has arrived, or is told again: twice does no harm."""
        with self._lock:
            self._pending.remove((wire, said))
            try:
                self._answer(said, _ANSWER)
            except Unavailable:
                self._pending.append((wire, self._remote.ask(wire)))
                raise


def _wire(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()
