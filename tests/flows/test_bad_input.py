"""Bad input, each on a real platform: a clear error that names what is wrong, and nothing lost or half done.

There is no upload of archives: what comes is a folder's files, named in a manifest (`test_attacks_files`); a zip or a tar is a
file like any other, and refused as neither a table, an image nor a model. The one zip that is opened is torch.save's, whose
entries may not be packed.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_tools import Wire, eventually, matmul
from PIL import Image
from safetensors.torch import load_file

from modelyard.client import Yard
from modelyard.errors import Crashed, Damaged, Invalid, ModelyardError, NotFound
from modelyard.storage import Artefacts, open_store
from modelyard.testing import yard

CODE = """
import os, sys, time
from torch import nn

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        {does}
        return self.line(x)
"""
MEMORY = 2_500_000_000
LINE = {"name": "Line", "inputs": ["x"], "target": "y"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform") / "yard"


@pytest.fixture(scope="module")
def platform(data: Path) -> Iterator[Yard]:
    with yard(data) as client:
        yield client


@pytest.fixture(scope="module")
def numbers(platform: Yard, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of x and y."""
    path = tmp_path_factory.mktemp("numbers") / "numbers.csv"
    path.write_text("x,y\n" + "".join(f"{n / 100},{n / 50 + 1}\n" for n in range(200)))
    return str(platform.import_dataset("numbers", path, target="y")["reference"])


def kept(platform: Yard) -> set[tuple[str, str]]:
    """The names of all there is."""
    return {("dataset", d["name"]) for d in platform.datasets()} | {("model", m["name"]) for m in platform.models()}


def picture(seed: int, form: str = "PNG") -> bytes:
    """Noise of 32 by 32 pixels, encoded."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)).save(out, form)
    return out.getvalue()


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """One bit of a file is another; afterwards the file is as it was."""
    sound, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(bytes([*sound[: len(sound) // 2], sound[len(sound) // 2] ^ 1]) + sound[len(sound) // 2 + 1 :])
    try:
        yield
    finally:
        path.write_bytes(sound)
        path.chmod(mode)


def blobs(platform: Yard, data: Path, artefact: str) -> dict[str, Path]:
    """Where the store keeps each file of an artefact of project 'default'."""
    files = platform._wire.get(f"/api/artefacts/{artefact}")["files"]
    chunks = {path: entry["chunks"][0] for path, entry in files.items()}
    return {path: data / "store" / "projects" / "default" / "blobs" / c[:2] / c for path, c in chunks.items()}


# Files that are not what they should be


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("12,oats,3", ["'broken.csv', line 32, column 'b'", "'oats'", "where a number was expected"]),
        ("12,13", ["'broken.csv', line 32", "2 fields", "expected 3 (a, b, c)"]),
        ("1,2,3,4", ["'broken.csv', line 32", "4 fields", "expected 3 (a, b, c)"]),
        ('1,"2,3', ["'broken.csv', line 32", "expected"]),
        ("1,2,\udcff", ["'broken.csv', line 32", "is not UTF-8"]),
    ],
)
def test_a_broken_row_is_named_and_nothing_imported(platform: Yard, tmp_path: Path, row: str, says: list[str]) -> None:
    path, before = tmp_path / "broken.csv", kept(platform)
    lines = ["a,b,c", *(f"{n},{n + 0.5},{n % 3}" for n in range(30)), row, *(f"{n},{n + 0.5},{n % 3}" for n in range(30))]
    path.write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    with pytest.raises(Invalid) as refused:
        platform.import_dataset("broken", path)
    assert [text for text in [*says, "othing was imported"] if text not in refused.value.message] == [], refused.value.message
    assert kept(platform) == before


@pytest.mark.parametrize(
    "image",
    [picture(1)[:-200], picture(1, "JPEG")[:-200], picture(1)[:20], b"not an image at all", b""],
    ids=["cut PNG", "cut JPEG", "head alone", "text", "empty"],
)
def test_an_image_that_cannot_be_read_is_named_and_nothing_imported(platform: Yard, tmp_path: Path, image: bytes) -> None:
    before = kept(platform)
    for name, content in {f"{c}/{n}.png": picture(n) for c in ("cat", "dog") for n in range(4)}.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    (tmp_path / "pets" / "dog" / "3.png").write_bytes(image)
    with pytest.raises(Invalid, match=r"dog/3\.png"):
        platform.import_dataset("pets", tmp_path / "pets")
    assert kept(platform) == before


def test_an_archive_is_no_way_in(platform: Yard, tmp_path: Path) -> None:
    before = kept(platform)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("../../cat/1.png", picture(1))
    with tarfile.open(tmp_path / "pets.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("cat/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    for name in ("pets.zip", "pets.tar.gz"):
        with pytest.raises(Invalid, match=name):
            platform.import_dataset("pets", tmp_path / name)
        with pytest.raises(Invalid, match=name):
            platform.import_model("pets", tmp_path / name)
    assert kept(platform) == before


SWELLS = 300_000_000  # bytes that the archive of a few hundred thousand unpacks to


def taken(folder: Path) -> int:
    """Bytes in a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """One that is a gzip, and one that is a zip."""
    folder, pieces = tmp_path_factory.mktemp("bombs"), SWELLS // 1_000_000
    with gzip.open(folder / "gzip", "wb") as file:
        file.writelines(bytes(1_000_000) for _ in range(pieces))
    with zipfile.ZipFile(folder / "zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("b/data.pkl", "w") as file:
        file.writelines(bytes(1_000_000) for _ in range(pieces))
    return {True: folder / "gzip", False: folder / "zip"}


@pytest.mark.parametrize("name", ["b.zip", "b.csv.gz", "b.csv", "b.parquet", "b.tar.gz", "b.pth", "b.onnx", "b.safetensors"])
def test_an_archive_that_swells_is_never_unpacked(
    platform: Yard, data: Path, bombs: dict[bool, Path], tmp_path: Path, name: str
) -> None:
    """By its own name, or by that of a file that is taken."""
    before, size, bomb = kept(platform), taken(data), tmp_path / name
    shutil.copy(bombs[name.endswith(".gz")], bomb)
    assert bomb.stat().st_size < SWELLS / 500
    (tmp_path / "model.py").write_text(CODE.format(does="pass"))
    more = {"module": f"{tmp_path / 'model.py'}:Line"} if name in ("b.pth", "b.safetensors") else {}
    dataset = name in ("b.zip", "b.csv.gz", "b.csv", "b.parquet")
    with pytest.raises(Invalid):
        _ = platform.import_dataset("swells", bomb) if dataset else platform.import_model("swells", bomb, **more)
    assert "memory" not in platform.jobs()[0]["error"]["message"]
    eventually(lambda: not list((data / "jobs").iterdir()), 20)
    assert taken(data) - size < 20_000_000
    assert kept(platform) == before


# Data that changed, or does not suffice


def test_a_dataset_that_changed_on_disk_trains_nothing(platform: Yard, data: Path, numbers: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE.format(does="pass"))
    artefact = platform.version(numbers, "dataset")["artefact"]
    train = "train/00000.parquet"

    def run() -> str:
        job = platform.train("changed", numbers, "module", code=tmp_path / "model.py", module=LINE, epochs=1, wait=False)
        return str(platform.result(job["id"])["reference"])

    assert run() == "changed@1"
    cached = data / "cache" / "default" / artefact / train
    with flipped(blobs(platform, data, artefact)[train]), flipped(cached), pytest.raises(Damaged, match=train):
        run()
    sound = cached.read_bytes()
    with flipped(cached):  # the store is sound: the copy is replaced before anything reads it
        assert run() == "changed@2"
        assert cached.read_bytes() == sound
    assert [v["version"] for v in platform.versions("changed")["versions"]] == [1, 2]


def test_a_split_without_a_class_is_refused(platform: Yard, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE.format(does="pass"))
    rows = [f"{n},{'common' if n % 2 else 'usual'}" for n in range(60)]
    (tmp_path / "rare.csv").write_text("x,y\n" + "\n".join([*rows, "60,seldom"]) + "\n")
    dataset = platform.import_dataset("rare", tmp_path / "rare.csv", target="y")["reference"]
    module = {**LINE, "loss": "cross-entropy"}
    with pytest.raises(Invalid, match=r"The (train|select) split has no sample of class 'seldom'"):
        platform.train("rare", dataset, "module", code=tmp_path / "model.py", module=module, epochs=1)
    assert ("model", "rare") not in kept(platform)


# Code that does not behave


def test_a_loss_that_is_no_number_says_when_and_keeps_the_checkpoint(
    platform: Yard, data: Path, numbers: str, tmp_path: Path
) -> None:
    does = "x = x * float('nan') if self.steps > 8 else x"
    (tmp_path / "model.py").write_text(CODE.format(does=does))
    wanted = {"module": LINE, "epochs": 9, "batch_size": 40}
    job = platform.train("nan", numbers, "module", code=tmp_path / "model.py", wait=False, **wanted)["id"]
    with pytest.raises(Invalid, match=r"The loss became nan in step \d of epoch (\d)") as failed:
        platform.result(job)
    epoch = next(n for n in range(2, 9) if f"of epoch {n};" in failed.value.message)
    assert f"the checkpoint of epoch {epoch - 1} is kept" in failed.value.message
    eventually(lambda: not (data / "jobs" / job).exists(), 20)  # when it is gone, so is what goes with it
    artefacts = Artefacts(open_store((data / "store").as_uri()), tmp_path / "cache")
    found = artefacts.latest_checkpoint("default", job, tmp_path / "checkpoint")
    assert found is not None
    assert json.loads((found / "progress.json").read_text())["progress"]["epochs"] == epoch - 1
    assert all(torch.isfinite(value).all() for value in load_file(found / "state.safetensors").values())
    assert ("model", "nan") not in kept(platform)


@pytest.mark.parametrize(
    ("does", "ranks", "says"),
    [
        (
            "if os.environ['RANK'] == '1' and self.training: raise KeyError('boom')",
            2,
            ["rank 1", "KeyError: 'boom'", "model.py"],
        ),
        ("if os.environ['RANK'] == '1' and self.training: sys.exit(3)", 2, ["rank 1", "sys.exit(3)"]),
        ("if self.training: os._exit(5)", 1, ["rank 0 ended with exit status 5 before its work was done"]),
        ("raise OSError('at the first look')", 1, ["OSError: at the first look", "model.py"]),
    ],
)
def test_a_module_that_gives_up_fails_its_job_with_its_own_words(
    platform: Yard, numbers: str, tmp_path: Path, does: str, ranks: int, says: list[str]
) -> None:
    (tmp_path / "model.py").write_text(CODE.format(does=does))
    with pytest.raises(Invalid) as failed:
        platform.train("gives-up", numbers, "module", code=tmp_path / "model.py", module=LINE, epochs=2, ranks=ranks)
    assert [text for text in says if text not in failed.value.message] == [], failed.value.message
    assert ("model", "gives-up") not in kept(platform)
    job = platform.jobs()[0]
    raised = [event["at"] for event in platform.events(job["id"]) if event["type"] == "log" and "Error" in event["text"]]
    assert raised or not any("Error" in text for text in says)
    ended = datetime.fromisoformat(job["finished"])
    assert all(ended - datetime.fromisoformat(moment) < timedelta(seconds=10) for moment in raised)


# A platform whose ranks may take little memory and be silent for a few seconds


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("strict")
    (folder / "numbers.csv").write_text("x,y\n" + "".join(f"{n},{n / 7}\n" for n in range(200)))
    (folder / "few").mkdir()
    for name, rows in (("train", 1), ("validation", 5)):
        (folder / "few" / f"{name}.jsonl").write_text("".join(f'{{"x": {n}.5, "y": {n}.25}}\n' for n in range(rows)))
    limits = {"HEARTBEAT": "2", "MEMORY": str(MEMORY), "CPUS": "2"}
    with yard(folder / "yard", **{f"MODELYARD_JOB_{name}": value for name, value in limits.items()}) as platform:
        platform.import_dataset("numbers", folder / "numbers.csv", target="y")
        platform.import_dataset("few", folder / "few", target="y")
        yield platform


def test_a_module_that_never_returns_is_ended(strict: Yard, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE.format(does="while True: time.sleep(1)"))
    code, once = tmp_path / "model.py", {"max_restarts": 0, "wait": False}
    job = strict.train("endless", "numbers", "module", code=code, module=LINE, **once)["id"]
    with pytest.raises(Crashed, match="no sign of life from any rank for 20 s"):  # ten times 2: it is tried before the steps
        strict.result(job)
    assert any("model.py" in line and "in forward" in line for line in strict.logs(job))


def test_a_training_that_runs_out_of_memory_says_so_beside_its_estimate(strict: Yard, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        CODE.format(does="self.training and self.add_module(str(self.steps), nn.Linear(4096, 4096))")
    )
    with pytest.raises(Invalid) as failed:
        strict.train("hoards", "numbers", "module", code=tmp_path / "model.py", module=LINE, batch_size=4)
    said = failed.value.message
    assert "The job ran out of memory: " in said, said
    last = said.splitlines()[-1]
    assert last.startswith("Estimated before the first step, at the least, in bytes of a rank: process ")
    assert last.endswith(f"bound {MEMORY:,}.")


def test_a_model_that_cannot_fit_is_refused_with_the_numbers_before_its_first_step(strict: Yard, tmp_path: Path) -> None:
    large = CODE.format(does="pass").replace("self.steps = 0", "self.steps, self.large = 0, nn.Linear(9000, 9000)")
    (tmp_path / "model.py").write_text(large)
    with pytest.raises(Invalid, match=r"a rank needs at least parameters 324\.0 MB \+ .* and may take 2\.5 GB"):
        strict.train("large", "numbers", "module", code=tmp_path / "model.py", module=LINE)
    job = strict.jobs()[0]
    assert (job["progress"], job["facts"]["0"]["memory_estimate"]["bound"]) == (None, MEMORY)


def test_what_a_gang_cannot_share_is_refused(strict: Yard, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE.format(does="pass"))
    before = len(strict.jobs())
    with pytest.raises(Invalid, match=r"A gang of 3 needs 3 CPUs at once; there are 2"):
        strict.train("wide", "numbers", "module", code=tmp_path / "model.py", module=LINE, ranks=3)
    with pytest.raises(Invalid, match=r"is of 4 ranks \(data 2 × shard 2\); the job has 2"):
        strict.train("mesh", "numbers", "module", code=tmp_path / "model.py", module=LINE, ranks=2, mesh="data=2,shard=2")
    assert len(strict.jobs()) == before
    with pytest.raises(Invalid, match=r"The train split has 1 row for 2 ranks"):
        strict.train("few", "few", "module", code=tmp_path / "model.py", module=LINE, ranks=2)
    with pytest.raises(NotFound, match=r"No feature 'z'\. There are: 'x', 'y'"):
        strict.train("z", "numbers", "module", code=tmp_path / "model.py", module={**LINE, "inputs": ["z"]})


# Things that are not there


def test_versions_and_outputs_that_are_not_there(platform: Yard, numbers: str, tmp_path: Path) -> None:
    platform.import_model("there", matmul(tmp_path / "m.onnx"))
    platform.deploy("there", "there")
    before = kept(platform)
    with pytest.raises(NotFound, match="numbers"):
        platform.train("nothing", "numbers@9", "module", module=LINE)
    with pytest.raises(NotFound, match="there"):
        platform.deploy("there", "there@9")
    with pytest.raises(NotFound, match="best"):
        platform.deploy("there", "there@best")
    x = np.ones((1, 3), np.float32)
    with pytest.raises(NotFound, match="9"):
        platform.predict("there", inputs={"x": x}, version="9")
    wire = Wire(platform.profile.url, platform.profile.key)
    call = {
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}],
        "outputs": [{"name": "z"}],
    }
    reply = wire.json("POST", "/v2/models/there/infer", json.dumps(call).encode())
    assert reply.status == 400
    assert "'z'" in json.loads(reply.body)["error"]
    assert "'y'" in json.loads(reply.body)["error"]
    assert platform.predict("there", inputs={"x": x})["y"].tolist() == [[6.0, 9.0]]
    assert kept(platform) == before


# Bytes that changed under a deployment


def test_a_flipped_byte_never_replaces_what_serves(platform: Yard, data: Path, tmp_path: Path) -> None:
    x = {"x": np.ones((1, 3), np.float32)}
    platform.import_model("steady", matmul(tmp_path / "m.onnx"))
    platform.deploy("steady", "steady@1")
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes() + b"\x32\x03own")  # a producer's note: other bytes
    artefact = platform.import_model("steady", tmp_path / "m.onnx")["artefact"]
    files = blobs(platform, data, artefact)
    assert {"model.json", "model.onnx"} <= set(files)
    for path, blob in files.items():
        with flipped(blob), pytest.raises(ModelyardError, match=path.replace(".", r"\.")):
            platform.deploy("steady", "steady@2")
        assert platform.predict("steady", inputs=x, version="1")["y"].tolist() == [[6.0, 9.0]]
    manifest = data / "store" / "projects" / "default" / "artefacts" / f"{artefact}.json"
    with flipped(manifest), pytest.raises(ModelyardError, match=artefact):
        platform.deploy("steady", "steady@2")
    assert platform.predict("steady", inputs=x, version="1")["y"].tolist() == [[6.0, 9.0]]
    platform.deploy("steady", "steady@2")
    assert platform.predict("steady", inputs=x, version="2")["y"].tolist() == [[6.0, 9.0]]


# A platform that cannot start


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = pytest.raises(RuntimeError, match=rf"Port {port} of .* choose another with --port")
        with refused, yard(tmp_path / "yard", "--port", str(port)):
            pass
    assert not (tmp_path / "yard" / "modelyard.db").exists()


def test_a_second_platform_on_a_folder_names_the_first(platform: Yard, data: Path, numbers: str) -> None:
    holder = (data / "up.lock").read_text().strip()
    assert "up" in Path(f"/proc/{holder}/cmdline").read_bytes().decode().split("\0")
    with pytest.raises(RuntimeError, match=rf"already runs on .* \(process {holder}\)"), yard(data):
        pass
    assert (data / "up.lock").read_text().strip() == holder
    assert platform.version(numbers, "dataset")["version"] == 1


def test_a_database_of_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modelyard", "migrate", "--data", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "modelyard.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        before = list(database.iterdump())
    database.close()
    with pytest.raises(RuntimeError, match=r"revision 9999, newer than .* a later one"), yard(tmp_path):
        pass
    refused = subprocess.run([*command, "--json"], capture_output=True, check=False)
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (6, "conflict")
    with sqlite3.connect(tmp_path / "modelyard.db") as database:
        assert list(database.iterdump()) == before
    database.close()
