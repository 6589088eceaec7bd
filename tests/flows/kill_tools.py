"""Kills processes of a working platform at random moments, by a seeded generator, then has everything checked. Every other kill
waits a while for that kind of work to be in progress that was killed least.

`kill_processes` has the platform, `kill_work` what goes on meanwhile, `kill_checks` what must hold afterwards.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kill_checks import check, rows, trainings_resumed
from kill_processes import Platform, Process, until
from kill_work import Caller, Jobs, Moves, scene

VICTIMS = ("supervisor", "gateway", "control", "replica", "launcher", "rank")
KINDS = {"import-dataset": "import", "import-model": "import", "train": "training", "optimise": "optimisation"}
WORK = ("import", "training", "optimisation", "deployment", "inference", "publication")
MOVING = (
    "select r.token from replicas r join deployments d on r.deployment = d.id where d.name = 'moving' and r.state = 'starting'"
)


@dataclass
class Ordeal:
    """`amid`: of each kind of work, how many kills came while it was in progress. `resumed`: trainings that went on from a
    checkpoint."""

    amid: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(WORK, 0)))
    resumed: int = 0


def ordeal(folder: Path, seed: int, *, storms: int, kills: int, patience: float = 5.0) -> Ordeal:
    """`storms` times: work and calls go on while `kills` processes are killed; then all of it is checked. `patience`: seconds
    that a kill waits at most for the work that was met least."""
    print(f"seed: KILLS_SEED={seed} plays these kills again", flush=True)
    rng, found = random.Random(seed), Ordeal()
    callers: list[Caller] = []
    with scene(folder) as stage:
        for number in range(1, storms + 1):
            print(f"storm {number}", flush=True)
            jobs, moves = (work(stage.platform, folder, random.Random(rng.random())) for work in (Jobs, Moves))
            callers.append(caller := Caller(stage.platform, stage.key))
            with ExitStack() as closing:  # every one of them is closed, whatever another's end was
                for thread in (jobs, moves, caller):
                    thread.start()
                    closing.callback(thread.close)
                doing = partial(under_way, stage.platform, moves, caller)
                storm(stage.platform, rng, kills, doing, found.amid, patience)
            check(stage, callers)
            did = dict(jobs.done + moves.done)
            print(f"did {did}; answered {dict(caller.answered)}, cut off {dict(caller.lost)}", flush=True)
        found.resumed = trainings_resumed(stage.platform.data)
        print(f"{found.resumed} trainings went on from a checkpoint; killed amid {dict(found.amid)}", flush=True)
        return found


def under_way(platform: Platform, moves: Moves, caller: Caller) -> set[str]:
    """The kinds of work in progress."""
    found = {KINDS[kind] for (kind,) in rows(platform.data, "select kind from jobs where state = 'running'")}
    told = {
        "deployment": bool(rows(platform.data, MOVING)),
        "inference": caller.calling,
        "publication": moves.doing == "publish",
    }
    return found | {kind for kind, there in told.items() if there}


def storm(
    platform: Platform, rng: random.Random, kills: int, doing: Callable[[], set[str]], amid: Counter[str], patience: float
) -> None:
    """Kill processes of every role in turn, in random order, at random moments."""
    order: list[str] = []
    for number in range(1, kills + 1):
        order = order or rng.sample(VICTIMS, len(VICTIMS))
        role, pause, which, late = order.pop(), rng.uniform(0.0, 2.0), rng.random(), rng.random() < 0.5
        gang = role in ("launcher", "rank") and (late or number <= len(VICTIMS))
        while True:
            # The first ones wait until there is one: on a slow machine a gang may be long in coming.
            if gang and (found := _await_resumable(platform, role, 60.0 if number <= len(VICTIMS) else 10.0)):
                victim = found[int(which * len(found))]
            else:
                victim = _victim(platform, role, pause, which)
                if late:
                    _await(lambda: min(WORK, key=amid.__getitem__) in doing(), patience)
            going_on = doing()
            if platform.kill(victim):
                break
            print(f"{role} {victim.pid} had just ended", flush=True)
        amid.update(going_on)
        print(f"kill {number}: {role} {victim.pid} after {pause:.2f} s, amid {sorted(going_on)}", flush=True)


def _await(true: Callable[[], bool], patience: float) -> None:
    """Wait a while for something that may not come."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not true():
        time.sleep(0.01)


def _await_resumable(platform: Platform, role: str, patience: float) -> list[Process]:
    """The processes of a role in gangs that have a checkpoint, once there are any; none if they do not come."""
    found: list[Process] = []

    def look() -> bool:
        kept = {path.parent.name for path in platform.data.glob("store/projects/*/checkpoints/*/latest.json")}
        running = rows(platform.data, "select id, pids from jobs where state = 'running'") if kept else []
        pids = {pid for job, listed in running if job in kept for pid in json.loads(listed)}
        ranks = [process for process in platform.find("rank") if process.pid in pids] if pids else []
        parents = {process.parent for process in ranks}
        found[:] = ranks if role == "rank" else [p for p in platform.find("launcher") if p.pid in parents]
        return bool(found)

    _await(look, patience)
    return found


def _victim(platform: Platform, role: str, pause: float, which: float) -> Process:
    """One of the processes of a role, `pause` seconds after there are any."""
    while True:
        until(lambda: platform.find(role), 120, f"there is a {role}")
        time.sleep(pause)
        if found := platform.find(role):
            return found[int(which * len(found))]
