"""What goes on while a platform is being killed: jobs of every kind, deployments, publications, and calls that are counted."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from attack_tools import CALL, matmul
from kill_processes import Platform

from modelyard.client import Yard
from modelyard.errors import TimedOut, Unavailable

DEPLOYMENTS = ("steady", "moving")
TRAINING = {"recipe": "image-classifier", "epochs": 12, "image_classifier": {"width": 16}}
T = TypeVar("T")


def insist(do: Callable[[], T], patience: float = 90.0) -> T:
    """What `do` gives, however often the platform is gone meanwhile."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return do()
        except (Unavailable, TimedOut):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class Work(threading.Thread):
    """Does what its subclass names, the first of it first and then in random order, over and over, until it is closed."""

    def __init__(self, platform: Platform, folder: Path, rng: random.Random) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self._folder, self._rng = folder, rng
        self._yard = platform.yard()
        self._stop_it = threading.Event()
        self.done: Counter[str] = Counter()
        self.doing = ""  # the action under way
        self.failure: BaseException | None = None

    def actions(self) -> list[Callable[[], None]]:
        raise NotImplementedError

    def may_go_on(self) -> bool:
        raise NotImplementedError

    def run(self) -> None:
        try:
            line = self.actions()[:1]
            while not self._stop_it.wait(0.3):
                if insist(self.may_go_on):
                    line = line or self._rng.sample(self.actions(), len(self.actions()))
                    action = line.pop()
                    self.doing = action.__name__
                    insist(action)
                    self.doing = ""
                    self.done[action.__name__] += 1
        except BaseException as error:
            self.failure = error

    def close(self) -> None:
        self._stop_it.set()
        self.join(120)
        assert not self.is_alive()
        self._yard.close()
        if self.failure is not None:
            raise self.failure


class Jobs(Work):
    """Imports, trainings, optimisations: jobs, at most three that have not ended."""

    def actions(self) -> list[Callable[[], None]]:
        return [self.train, self.csv, self.digits, self.optimise, self.model]

    def may_go_on(self) -> bool:
        return sum(job["state"] in ("queued", "starting", "running") for job in self._yard.jobs()) < 3

    def train(self) -> None:
        self._yard.train("twin", "digits@1", ranks=2, wait=False, **TRAINING)

    def csv(self) -> None:
        self._yard.import_dataset("table", self._folder / "table.csv", wait=False)

    def digits(self) -> None:
        self._yard.import_dataset("digits", "sklearn:digits", wait=False)

    def optimise(self) -> None:
        self._yard.optimize("base@1", dataset="digits@1", max_accuracy_drop=50, seconds=0.2, wait=False)

    def model(self) -> None:
        self._yard.import_model("published", self._folder / "matmul.onnx", wait=False)


class Moves(Work):
    """Deployments that move to another version, artefacts that are published, aliases that change."""

    def actions(self) -> list[Callable[[], None]]:
        return [self.deploy, self.publish, self.alias]

    def may_go_on(self) -> bool:
        return not self._stop_it.wait(self._rng.uniform(0.0, 1.0))

    def deploy(self) -> None:
        self._yard.deploy("moving", f"matmul@{self._rng.choice((1, 2))}", wait=False)

    def publish(self) -> None:
        file = self._folder / f"{self._rng.randrange(1 << 32)}.bin"
        file.write_bytes(self._rng.randbytes(4_000_000))
        self._yard.upload(file)

    def alias(self) -> None:
        self._yard.set_alias(f"matmul@{self._rng.choice((1, 2))}", "chosen")


class Caller(threading.Thread):
    """Calls both deployments in turn, one call at a time, and counts by deployment what became of each."""

    def __init__(self, platform: Platform, key: str) -> None:
        super().__init__(name="caller", daemon=True)
        self._url, self._key = platform.url, key
        self.stop = threading.Event()
        self.calling = False
        self.answered: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()  # may have been computed: the connection broke before the answer was whole
        self.refused: Counter[int] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {self._key}"}, timeout=70, trust_env=False) as client:
            while not self.stop.is_set():
                for name in DEPLOYMENTS:
                    self.calling = True
                    self._call(client, name)
                    self.calling = False
                time.sleep(0.01)

    def _call(self, client: httpx.Client, name: str) -> None:
        try:
            response = client.post(f"{self._url}/v2/models/{name}/infer", json=CALL)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            time.sleep(0.1)
        except httpx.TransportError:
            self.lost[name] += 1
        else:
            if response.status_code == 200:
                self.answered[name] += 1
                if response.json()["outputs"][0]["data"] != [16.0, 22.0]:
                    self.wrong.append(response.text)
            elif response.status_code in (503, 504):
                self.refused[response.status_code] += 1
                time.sleep(0.05)
            else:
                self.wrong.append(f"{response.status_code}: {response.text}")

    def close(self) -> None:
        self.stop.set()
        self.join(100)
        assert not self.is_alive()


@dataclass
class Scene:
    """A platform with data, models and deployments on it; `weights` are those of an undisturbed training."""

    platform: Platform
    folder: Path
    key: str
    weights: str


@contextlib.contextmanager
def scene(folder: Path, **environment: str) -> Iterator[Scene]:
    """A platform below `folder` and everything set up on it. Jobs that are killed are started again as often as it takes."""
    platform = Platform(folder / "yard", **{"MODELYARD_JOB_RESTARTS": "1000", **environment})
    platform.start()
    try:
        (folder / "table.csv").write_text("a,b\n" + "\n".join(f"{n},{n % 2}" for n in range(400)) + "\n")
        with platform.yard() as yard:
            yard.import_dataset("digits", "sklearn:digits")
            for _ in (1, 2):
                yard.import_model("matmul", matmul(folder / "matmul.onnx"))
            yard.train("base", "digits@1", ranks=2, **TRAINING)
            for name in DEPLOYMENTS:
                yard.deploy(name, "matmul@1")
            key = yard.create_key("infer")["key"]
            yield Scene(platform, folder, key, weights(yard, "base@1"))
    finally:
        platform.close()


def weights(yard: Yard, reference: str) -> str:
    """The hash of a model's weights."""
    manifest = insist(lambda: yard._wire.get(f"/api/artefacts/{yard.version(reference)['artefact']}"))
    return str(next(entry["root"] for path, entry in manifest["files"].items() if path.endswith(".safetensors")))
