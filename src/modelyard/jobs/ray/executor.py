"""Implements `jobs.types.Executor` on a Ray cluster. Control makes one where the setting `cluster` names one.

`assign` has decided where a gang goes; Ray sets the room aside, and on each node the actor there starts a launcher. `placement`
decides where a replica goes. On this machine gateways reach it by its Unix socket, on another over that node's bridge (`tls`).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modelyard.errors import Crashed, ModelyardError, Unavailable
from modelyard.jobs.ray import tls
from modelyard.jobs.ray.cluster import Cluster, Machine, Remote
from modelyard.jobs.ray.gang import RayGang, ended
from modelyard.jobs.ray.link import Link
from modelyard.jobs.ray.placement import HERE, Place, choose
from modelyard.jobs.types import Event, Gang, GangHandle, Node, ProcessStatus, ReplicaSpec
from modelyard.settings import Settings
from modelyard.telemetry import log

_log = log(__name__)
_REPLICA = TypeAdapter(ReplicaSpec)
# Seconds for which a node that was lost is given nothing: Ray takes a while to see that it is gone.
_SHUNNED = 30.0
# Seconds that Ray may take to set room aside: what `assign` gave is free, unless others use the cluster too.
_ROOM = 30.0


class RayExecutor:
    """`extra_readonly`: further folders of modules, on every node, that gangs may import."""

    def __init__(self, settings: Settings, *, extra_readonly: Sequence[Path] = ()) -> None:
        self._settings = settings
        self._extra = [str(folder) for folder in extra_readonly]
        self._cluster = Cluster(settings.cluster, _namespace(settings.data))
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="gangs")
        self._gangs: dict[str, RayGang] = {}
        self._links: dict[str, Link] = {}
        self._lost: dict[str, float] = {}
        self._wrong: dict[str, ModelyardError] = {}
        self._found = False
        self._linking = threading.Lock()
        self._news, self._told = threading.Condition(), False

    def start_gang(self, gang: Gang, instead: GangHandle | None = None) -> GangHandle:
        """Start the parts of `gang`, beside the caller; what keeps it from starting is how it ends."""
        if not gang.nodes:
            gang = replace(gang, nodes=((self._spare().name, gang.ranks),))
        handle = self._gangs[gang.token] = RayGang(gang, self._changed, self._idles)
        self._pool.submit(self._begin, handle)
        return handle

    def start_replica(self, spec: ReplicaSpec) -> None:
        """Start it where `placement` says. Raises `Unavailable` where no node can take one."""
        links = {link.machine.name: link for link in self._known()}
        homes = {machine.name: machine for machine in self._homes()}
        if not homes:
            raise Unavailable(
                f"No node of the cluster {self._settings.cluster} can take a replica: it needs one with processors, or one on "
                "this machine (`modelyard up --cluster HOST:PORT` makes it one)."
            )
        places = [_place(self._node(home), links.get(name), home.address) for name, home in homes.items()]
        machine = homes[choose(spec.group, places).name]
        self._link(machine).start_replica(_REPLICA.dump_python(spec, mode="json"), self._gateway(machine))

    def stop_replica(self, token: str, grace: float = 5.0) -> None:
        for link in self._known():
            if token in link.replicas():
                link.tell(do="stop_replica", token=token, grace=grace)

    def replicas(self) -> Mapping[str, ProcessStatus]:
        """Replicas on the nodes that something of ours runs on. Raises `Unavailable` where one has never told of its own."""
        return {token: one.status for link in self._known() for token, one in link.replicas().items()}

    def nodes(self) -> Sequence[Node]:
        """The nodes with processors; what one has is Ray's word. One that was lost just now is away."""
        return [self._node(machine) for machine in self._cluster.machines() if machine.room.cpus]

    def machines(self) -> Sequence[Node]:
        """One of the nodes of each machine that replicas go to: the largest."""
        homes = sorted(self._homes(), key=lambda machine: (not self._node(machine).away, machine.room.memory))
        return list({_machine(home.address): self._node(home) for home in homes}.values())

    def _homes(self) -> Sequence[Machine]:
        """The nodes that replicas go to: those with processors, and all of this machine."""
        return [machine for machine in self._cluster.machines() if machine.room.cpus or _is_here(machine.address)]

    def end_gangs(self) -> Mapping[str, ModelyardError]:
        self._known()
        wrong, self._wrong = self._wrong, {}
        return wrong

    def wait(self, timeout: float) -> None:
        with self._news:
            self._news.wait_for(lambda: self._told, timeout)
            self._told = False

    def wake(self) -> None:
        with self._news:
            self._told = True
            self._news.notify_all()

    def close(self) -> None:
        """Leave the cluster. Replicas go on; gangs end when another control comes, or none does for a while."""
        for link in self._links.values():
            link.close()
        self._pool.shutdown(cancel_futures=True)
        self._cluster.close()

    def _node(self, machine: Machine) -> Node:
        away = time.monotonic() - self._lost.get(machine.id, -_SHUNNED) < _SHUNNED
        return Node(machine.name, machine.room, away)

    def _gateway(self, machine: Machine) -> str:
        """The certificate of those that reach replicas there from here; empty where it is this machine."""
        return "" if _is_here(machine.address) else tls.identity(self._settings.identity)

    def _begin(self, handle: RayGang) -> None:
        """Set room aside, then start every part. Runs in a thread of its own."""
        try:
            self._begin_parts(handle)
        except ModelyardError as error:
            self._fail(handle, error.message)
        except Exception as error:  # noqa: BLE001 — the edge of the thread: nobody else would say that the gang has ended
            _log.exception("a gang could not be started", job=handle.gang.job)
            self._fail(handle, repr(error))

    def _begin_parts(self, handle: RayGang) -> None:
        gang = handle.gang
        if handle.killed:
            raise Crashed("it was ended before")
        parts = self._parts(gang)
        self._cluster.reserve(gang.token, parts, gang.each, _ROOM)
        links = {machine.name: self._link(machine) for machine, _ in parts}
        try:
            for node, link in links.items():
                if handle.killed or handle.ended:
                    raise Crashed("it was ended meanwhile")
                link.ask(do="start", token=gang.token, gang=replace(gang, here=node).to_wire())
                handle.joined(node, link)
            if handle.ended:
                raise Crashed("it was ended meanwhile")
        except ModelyardError:
            for link in links.values():  # it may be there, though no answer is
                link.tell(do="kill", token=gang.token)
            raise

    def _fail(self, handle: RayGang, why: str) -> None:
        handle.kill()
        for node, _ in handle.gang.nodes:
            handle.hear(node, ended(Crashed(f"The job could not be started: {why}")))
        self._release(handle)

    def _parts(self, gang: Gang) -> list[tuple[Machine, int]]:
        there = {machine.name: machine for machine in self._cluster.machines()}
        missing = [name for name, _ in gang.nodes if name not in there]
        if missing:
            raise Crashed(f"The node {missing[0]} is gone.")
        return [(there[name], ranks) for name, ranks in gang.nodes]

    def _spare(self) -> Machine:
        """Where a gang goes that was given no place."""
        there = [machine for machine in self._cluster.machines() if machine.room.cpus]
        if not there:
            raise Unavailable(f"The cluster {self._settings.cluster} has no node with processors.")
        return there[0]

    def _changed(self, gang: RayGang) -> None:
        if gang.ended and self._gangs.pop(gang.token, None) is not None:
            self._release(gang)
        self.wake()

    def _release(self, gang: RayGang) -> None:
        with contextlib.suppress(ModelyardError):
            self._cluster.release(gang.token)

    def _idles(self, gang: RayGang, idle: bool) -> None:
        """While a gang waits for its children its room is theirs."""
        self._release(gang)
        if idle:
            return
        with contextlib.suppress(ModelyardError):
            self._cluster.reserve(gang.token, self._parts(gang.gang), gang.gang.each, 0)
        if gang.ended:  # meanwhile: nobody else would give the room back
            self._release(gang)

    def _link(self, machine: Machine) -> Link:
        """The way to a node's actor, which is started where there is none."""
        with self._linking:
            link = self._links.get(machine.id)
            if link is None:
                said: dict[str, Any] = {"node": machine.name, "address": machine.address, "readonly": self._extra}
                said |= {"sandbox": self._settings.sandbox, "job_memory": self._settings.job_memory}
                link = self._open(machine, self._cluster.start(machine, json.dumps(said).encode()))
            return link

    def _open(self, machine: Machine, remote: Remote) -> Link:
        gateway = ""
        with contextlib.suppress(ModelyardError):  # gangs need none; the start of a replica says what is wrong
            gateway = self._gateway(machine)
        link = self._links[machine.id] = Link(machine, remote, partial(self._heard, machine), self._gone, gateway)
        self._wrong |= link.wrong
        link.listen()
        return link

    def _known(self) -> list[Link]:
        """All links; at first also those to the actors that an earlier control left, whose gangs are thereby ended."""
        with self._linking:
            if not self._found:
                for machine in self._cluster.machines():
                    remote = self._cluster.find(machine)
                    if remote is not None and machine.id not in self._links:
                        self._open(machine, remote)
                self._found = True
            return list(self._links.values())

    def _heard(self, machine: Machine, token: str, event: Event) -> None:
        """A part of a gang speaks. One that lives though its gang has ended, or counts as lost, is ended, at every beat."""
        gang, link = self._gangs.get(token), self._links.get(machine.id)
        if gang is not None:
            gang.hear(machine.name, event)
        if event.type in ("started", "beat") and link is not None and (gang is None or gang.over(machine.name)):
            link.tell(do="kill", token=token)

    def _gone(self, link: Link) -> None:
        """A node is lost: so are the gangs that had a part there."""
        name = link.machine.name
        _log.warning("a node of the cluster is lost", node=name)
        self._lost[link.machine.id] = time.monotonic()
        self._links.pop(link.machine.id, None)
        for gang in list(self._gangs.values()):
            if any(node == name for node, _ in gang.gang.nodes):
                gang.hear(name, ended(Crashed(f"The node {name} was lost.")))


def _place(node: Node, link: Link | None, address: str) -> Place:
    try:
        placed = link.replicas().values() if link is not None else ()
    except Unavailable:
        placed = ()
    groups = [one.group for one in placed if one.exit is None]
    return Place(node.name, _machine(address), node.room.memory, groups, node.away or (link is not None and link.silent))


def _namespace(data: Path) -> str:
    """The platform's own name in the cluster, made once and kept in its data folder."""
    path = data / "cluster.name"
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.write_text(f"modelyard-{secrets.token_hex(8)}")
        fresh.rename(path)
    return path.read_text()


def _machine(address: str) -> str:
    return HERE if _is_here(address) else address


def _is_here(address: str) -> bool:
    """Whether an address is this machine's: only then a socket can be bound to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.bind((address, 0))
        return True
    return False
