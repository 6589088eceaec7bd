"""Kills processes of a working platform at random moments, by a seeded generator, then has everything checked.

`kill_processes` has the platform, `kill_work` what goes on meanwhile, `kill_checks` what must hold afterwards.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path

from kill_checks import check, trainings_resumed
from kill_processes import Platform, Process, until
from kill_work import Caller, Jobs, Moves, scene

VICTIMS = ("supervisor", "gateway", "control", "replica", "launcher", "rank")


def ordeal(folder: Path, seed: int, *, storms: int, kills: int) -> int:
    """`storms` times: work and calls go on while `kills` processes are killed; then all of it is checked. Returns how many
    trainings went on from a checkpoint."""
    print(f"seed: KILLS_SEED={seed} plays these kills again", flush=True)
    rng = random.Random(seed)
    callers: list[Caller] = []
    with scene(folder) as stage:
        for number in range(1, storms + 1):
            print(f"storm {number}", flush=True)
            works = [work(stage.platform, folder, random.Random(rng.random())) for work in (Jobs, Moves)]
            callers.append(Caller(stage.platform, stage.key))
            with ExitStack() as closing:  # every one of them is closed, whatever another's end was
                for thread in (*works, callers[-1]):
                    thread.start()
                    closing.callback(thread.close)
                storm(stage.platform, rng, kills)
            check(stage, callers)
            did = dict(works[0].done + works[1].done)
            print(f"did {did}; answered {dict(callers[-1].answered)}, cut off {dict(callers[-1].lost)}", flush=True)
        resumed = trainings_resumed(stage.platform.data)
        print(f"{resumed} trainings went on from a checkpoint", flush=True)
        return resumed


def seed_of(environment: str | None) -> int:
    return int(environment) if environment else random.SystemRandom().randrange(1 << 32)


def storm(platform: Platform, rng: random.Random, kills: int) -> None:
    """Kill processes of every role in turn, in random order, at random moments."""
    order: list[str] = []
    for number in range(1, kills + 1):
        order = order or rng.sample(VICTIMS, len(VICTIMS))
        role, pause, which, late = order.pop(), rng.uniform(0.0, 2.0), rng.random(), rng.random() < 0.5
        if late and role in ("launcher", "rank"):
            _await_checkpoint(platform)
        while not platform.kill(victim := _victim(platform, role, pause, which)):
            print(f"{role} {victim.pid} had just ended", flush=True)
        print(f"kill {number}: {role} {victim.pid} after {pause:.2f} s", flush=True)


def _await_checkpoint(platform: Platform, patience: float = 10.0) -> None:
    """Wait a while for a training that could be resumed."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not list(platform.data.glob("store/projects/*/checkpoints/*/latest.json")):
        time.sleep(0.05)


def _victim(platform: Platform, role: str, pause: float, which: float) -> Process:
    """One of the processes of a role, `pause` seconds after there are any."""
    while True:
        until(lambda: platform.find(role), 120, f"there is a {role}")
        time.sleep(pause)
        if found := platform.find(role):
            return found[int(which * len(found))]
