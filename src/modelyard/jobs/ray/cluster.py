"""The one door to Ray: joining a cluster, its nodes, the actors on them, and room that is reserved for gangs.

The rest of the executor knows names, amounts and bytes. Ray pickles between its own processes, inside the trust of the cluster:
of ours it carries the name of a class, and bytes that hold JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from modelyard.errors import Crashed, Unavailable
from modelyard.jobs.ray import check_client
from modelyard.jobs.ray.host import Host
from modelyard.jobs.types import Amount

# Seconds a cluster may take to appear, an actor to start, and what is known of the nodes to be looked at again.
_JOIN, _START, _FRESH = 60.0, 60.0, 1.0
# Characters of what Ray says of an error that are passed on.
_LONGEST = 500
_ACTOR: dict[str, Any] = {
    "num_cpus": 0,
    "max_concurrency": 8,
    "concurrency_groups": {"hear": 2},
    "max_restarts": 0,
    "max_task_retries": 0,
}
# Who listens keeps nobody who asks waiting. Said here and not with each call: Ray's client over the network cannot.
ray.method(concurrency_group="hear")(Host.hear)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the cluster: our name of it, Ray's, its address, and what there is of it in all."""

    name: str
    id: str
    address: str
    room: Amount


class Said:
    """What an actor will have answered."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def get(self, timeout: float) -> bytes:
        """Raises `Crashed` where the actor is gone for good, `Unavailable` where it cannot be reached or is late."""
        try:
            return bytes(ray.get(self.reference, timeout=timeout))
        except ActorDiedError as error:
            raise Crashed(f"A node's actor is gone: {_short(error)}") from error
        except GetTimeoutError as error:
            raise Unavailable(f"A node did not answer within {timeout:g} s.") from error
        except RayError as error:
            raise Unavailable(f"A node cannot be reached: {_short(error)}") from error


class Remote:
    """A `Host` on another node."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def ask(self, message: bytes) -> Said:
        return Said(self._actor.ask.remote(message))

    def hear(self, holder: str, heard: int, patience: float) -> Said:
        return Said(self._actor.hear.remote(holder, heard, patience))


class Cluster:
    """A connection to the Ray cluster at `address`. Actors have names in `namespace`, one for each platform."""

    def __init__(self, address: str, namespace: str) -> None:
        self._groups: dict[str, PlacementGroup] = {}
        self._looked, self._machines = -_FRESH, tuple[Machine, ...]()
        self._connect(address, namespace)

    def _connect(self, address: str, namespace: str) -> None:
        """Join, as soon as the cluster is there. Raises `Unavailable`, at once where waiting does not help."""
        check_client(address)
        # Ray takes 127.0.0.1 for a mistake and puts the machine's own address in its place.
        host = address.rpartition(":")[0]
        local: dict[str, Any] = {"_node_ip_address": host} if host.startswith("127.") else {}
        deadline = time.monotonic() + _JOIN
        while True:
            try:
                ray.init(address=address, namespace=namespace, log_to_driver=False, configure_logging=False, **local)
            except (ValueError, RuntimeError) as error:  # no address; another version of Ray or Python, in several lines
                said = " ".join(str(error).split())[:_LONGEST]
                raise Unavailable(f"The Ray cluster at {address} cannot be joined: {said}") from error
            except (ConnectionError, RayError) as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"The Ray cluster at {address} cannot be joined: {_short(error)}") from error
                time.sleep(0.5)
            else:
                return

    def machines(self) -> Sequence[Machine]:
        """The nodes that are alive, looked at once a second. Raises `Unavailable`."""
        if time.monotonic() - self._looked >= _FRESH:
            with _reached():
                nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            self._machines = tuple(sorted(map(_machine, nodes), key=lambda machine: machine.name))
            self._looked = time.monotonic()
        return self._machines

    def find(self, machine: Machine) -> Remote | None:
        """The actor on a node, where an earlier control started one."""
        with _reached():
            try:
                return Remote(ray.get_actor(machine.id))
            except ValueError:
                return None

    def start(self, machine: Machine, said: bytes) -> Remote:
        """The actor on a node, started where there is none yet."""
        where = NodeAffinitySchedulingStrategy(machine.id, soft=False)
        named = {"name": machine.id, "lifetime": "detached", "get_if_exists": True, "scheduling_strategy": where}
        with _reached():
            return Remote(ray.remote(**_ACTOR)(Host).options(**named).remote(said))

    def reserve(self, token: str, parts: Sequence[tuple[Machine, int]], each: Amount, patience: float) -> None:
        """Have Ray set aside room for a gang, all of it or none. Raises `Unavailable` where there is none within `patience`
        seconds (0: do not wait for it)."""
        bundles = [_bundle(ranks, each) for _, ranks in parts]
        labels = [{"ray.io/node-id": machine.id} for machine, _ in parts]
        with _reached():
            group = self._groups[token] = placement_group(bundles, strategy="PACK", name=token, bundle_label_selector=labels)
            there = not patience or group.wait(patience)
        if not there:
            self.release(token)
            places = ", ".join(machine.name for machine, _ in parts)
            raise Unavailable(f"Ray had no room on {places} within {patience:g} s; something else than Modelyard may use it.")

    def release(self, token: str) -> None:
        group = self._groups.pop(token, None)
        if group is not None:
            with _reached():
                remove_placement_group(group)

    def close(self) -> None:
        ray.shutdown()


@contextmanager
def _reached() -> Iterator[None]:
    """Ray's own trouble is `Unavailable`."""
    try:
        yield
    except RayError as error:
        raise Unavailable(f"The Ray cluster does not answer: {_short(error)}") from error


def wait(said: Sequence[Said], timeout: float) -> list[Said]:
    """Those that are answered, as soon as one is, or after `timeout` seconds."""
    references = [one.reference for one in said]
    ray.wait(references, num_returns=1, timeout=timeout, fetch_local=False)
    ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
    return [one for one in said if one.reference in ready]


def _machine(node: Mapping[str, Any]) -> Machine:
    there = node["Resources"]
    room = Amount(int(there.get("CPU", 0)), int(there.get("GPU", 0)), int(there.get("memory", 0)))
    return Machine(f"{node['NodeManagerHostname']}-{node['NodeID'][:8]}", node["NodeID"], node["NodeManagerAddress"], room)


def _bundle(ranks: int, each: Amount) -> dict[str, float]:
    amounts = {"CPU": ranks * each.cpus, "GPU": ranks * each.gpus, "memory": ranks * each.memory}
    return {name: float(amount) for name, amount in amounts.items() if amount}


def _short(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:_LONGEST] or type(error).__name__
