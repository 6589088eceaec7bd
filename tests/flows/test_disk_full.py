"""A disk that fills up under a running platform: a clear error, nothing half, exact books, and on it goes once there is space.

The data folder is a small file system of its own. Who may not mount one runs these tests as root of a user namespace.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from attack_tools import eventually, matmul

from modelyard.client import Yard
from modelyard.errors import ModelyardError, Unavailable
from modelyard.storage import Artefacts, open_store
from modelyard.testing import yard

SIZE = 160 << 20
# Seconds in which a gateway settles twice: there is no condition to wait for where nothing may come.
SETTLED = 1.0
X = {"x": np.ones((1, 3), np.float32)}
CODE = """
import time
from torch import nn

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.ballast = nn.Linear(1, 1), nn.Linear(512, 512)

    def forward(self, x):
        time.sleep(0.01)
        return self.line(x)
"""


def works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


MOUNTS = works("unshare", "-m", "true")
alone = pytest.mark.skipif(MOUNTS, reason="file systems may be mounted here, so each of these tests runs by itself")


@alone
@pytest.mark.timeout(600)
def test_all_of_them_as_root_of_a_user_namespace() -> None:
    if not works("unshare", "-rm", "true"):
        pytest.skip("the kernel lets this user neither mount a file system nor make a user namespace")
    run = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed, 1 skipped" in done.stdout, done.stdout[-500:]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 160 MiB."""
    folder = tmp_path_factory.mktemp("disk")
    if not MOUNTS:
        pytest.skip("runs in a user namespace, see above")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def platform(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A platform on that disk, with the deployment 'there'."""
    with yard(disk / "yard") as client:
        client.import_model("there", matmul(tmp_path_factory.mktemp("there") / "m.onnx"))
        client.deploy("there", "there")
        yield client


@contextlib.contextmanager
def full(disk: Path, leave: int = 0) -> Iterator[None]:
    """While this is open, `leave` bytes are free."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        if leave:
            with ballast.open("r+b") as file:
                file.truncate(ballast.stat().st_size - leave)
        yield
    finally:
        ballast.unlink()


def manifests(disk: Path) -> set[str]:
    return {path.name for path in (disk / "yard" / "store").rglob("artefacts/*.json")}


def fill(platform: Yard) -> ModelyardError:
    """Change the database until its disk has no room for more; what the caller is told then."""
    for number in range(2000):
        try:
            platform.create_key("infer", name=f"{number:04}{'k' * 96}")
        except ModelyardError as error:
            return error
    raise AssertionError("the disk is not full")


def test_an_upload_that_does_not_fit_leaves_nothing(platform: Yard, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(random.Random(1).randbytes(4 << 20))
    before = manifests(disk)
    for leave in (0, 2 << 20):
        with full(disk, leave), pytest.raises(Unavailable, match="No space left on device"):
            platform.upload(tmp_path / "model.bin")
        assert manifests(disk) == before
    assert not list((disk / "yard" / "store").rglob("*#*"))
    artefact = platform.upload(tmp_path / "model.bin")
    artefacts = Artefacts(open_store((disk / "yard" / "store").as_uri()), tmp_path / "cache")
    assert (artefacts.local("default", artefact) / "model.bin").read_bytes() == (tmp_path / "model.bin").read_bytes()


def test_a_job_whose_inputs_do_not_fit_says_so(platform: Yard, disk: Path, tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes() + b"\x32\x03own")
    with full(disk, 8 << 20), pytest.raises(Unavailable, match="bytes on this node, which has 0 to spare"):
        platform.import_model("later", path)
    assert "later" not in [model["name"] for model in platform.models()]
    assert platform.import_model("later", path)["version"] == 1


@pytest.mark.parametrize("leave", [0, 1 << 17, 1 << 19], ids=["nothing left", "128 KiB left", "512 KiB left"])
def test_an_import_or_its_publication_that_does_not_fit_is_whole_or_not_at_all(platform: Yard, disk: Path, leave: int) -> None:
    """The space ends in the job's own files, in the store, or in the database, as it comes."""
    target, job = {"kind": "dataset", "name": f"digits-{leave}"}, ""
    with full(disk, leave):
        with contextlib.suppress(Unavailable):
            job = platform.submit("import-dataset", {"source": "sklearn:digits"}, {}, target=target)["id"]
        with contextlib.suppress(AssertionError):  # its end is told now, or when the database has room for it
            eventually(lambda: bool(job) and platform.job(job)["state"] in ("failed", "succeeded"), 4)
    ended = _ended(platform, job) if job else {"outputs": [], "error": None}
    assert ended["error"] is None or "disk" in ended["error"]["message"] or "space" in ended["error"]["message"], ended
    made = [output["reference"] for output in ended["outputs"]]
    made.append(platform.import_dataset(target["name"], "sklearn:digits")["reference"])
    assert [f"{target['name']}@{v['version']}" for v in platform.versions(target["name"], "dataset")["versions"]] == made
    eventually(lambda: not list((disk / "yard" / "jobs").iterdir()), 10)


def _ended(platform: Yard, job: str) -> dict[str, Any]:
    with contextlib.suppress(ModelyardError):
        platform.wait(job)
    return platform.job(job)


@pytest.mark.parametrize(("ranks", "mesh"), [(1, "data"), (2, "shard=2")], ids=["whole", "in parts"])
def test_a_checkpoint_that_does_not_fit_is_told_and_training_goes_on(
    platform: Yard, disk: Path, tmp_path: Path, ranks: int, mesh: str
) -> None:
    (tmp_path / "model.py").write_text(CODE)
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{n},{n}\n" for n in range(100)))
    dataset = platform.import_dataset(f"line-{ranks}", tmp_path / "t.csv", target="y")["reference"]
    module = {"name": "Line", "inputs": ["x"], "target": "y"}
    wanted = {
        "ranks": ranks,
        "mesh": mesh,
        "code": tmp_path / "model.py",
        "module": module,
        "epochs": 100_000,
        "schedule": "constant",
        "lr": 1e-6,
    }
    job = platform.train("line", dataset, "module", wait=False, **wanted)["id"]
    store = disk / "yard" / "store" / "projects" / "default" / "checkpoints" / job
    eventually((store / "latest.json").exists, 60)

    def told() -> dict[str, Any]:
        return dict(platform.job(job)["facts"].get("0", {}))

    with full(disk, 1 << 19), contextlib.suppress(AssertionError):
        eventually(lambda: "checkpoint_error" in told(), 6)  # or later, when the database has room for it
    eventually(lambda: "checkpoint_error" in told(), 20)
    assert "No space left on device" in told()["checkpoint_error"]
    kept = latest(disk, job, tmp_path / "while")
    assert kept >= 1
    eventually(lambda: latest(disk, job, tmp_path / "then") > kept, 30)
    assert platform.job(job)["state"] == "running"
    platform.cancel(job)
    eventually(lambda: not (disk / "yard" / "jobs" / job).exists(), 20)


def latest(disk: Path, job: str, folder: Path) -> int:
    """Epochs done by the newest checkpoint, which is whole."""
    artefacts = Artefacts(open_store((disk / "yard" / "store").as_uri()), folder / "cache")
    found = artefacts.latest_checkpoint("default", job, folder / "found")
    assert found is not None
    record = json.loads((found / "progress.json").read_text())
    sizes = {path.name: path.stat().st_size for path in found.glob("*.safetensors")}
    assert sizes == record["files"]
    return int(record["progress"]["epochs"])


def unsettled(platform: Yard) -> float:
    """How often the gateway tried to settle in vain."""
    profile = platform.profile
    told = httpx.get(f"{profile.url}/metrics", headers={"Authorization": f"Bearer {profile.key}"}).raise_for_status().text
    found = re.search(r'^modelyard_unexpected_errors_total\{process="meter"\} (.+)$', told, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_is_served_meanwhile_is_booked_exactly(platform: Yard, disk: Path) -> None:
    def booked() -> int:
        return sum(row["calls"] for row in platform.usage() if (row["kind"], row["subject"]) == ("serving", "there"))

    for _ in range(3):
        platform.predict("there", inputs=X)
    eventually(lambda: booked() >= 3, 5)
    time.sleep(SETTLED)
    before, in_vain = booked(), unsettled(platform)
    with full(disk):
        refused = fill(platform)
        assert isinstance(refused, Unavailable)
        assert "The disk of the database is full" in refused.message
        for _ in range(50):
            assert platform.predict("there", inputs=X)["y"].tolist() == [[6.0, 9.0]]
        eventually(lambda: unsettled(platform) > in_vain, 10)
        assert platform.predict("there", inputs=X)["y"].tolist() == [[6.0, 9.0]]
    eventually(lambda: booked() == before + 51, 10)
    platform.predict("there", inputs=X)
    eventually(lambda: booked() == before + 52, 5)
    time.sleep(SETTLED)
    assert booked() == before + 52
    assert platform.create_key("infer")["key"]
