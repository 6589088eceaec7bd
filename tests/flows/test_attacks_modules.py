"""Attacks from a module that came with a model: it runs when the model is imported, in a job, and again in its replica. Each is
stopped, what it met stands in the job's or the deployment's error, and the platform goes on answering."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from attack_tools import Wire, eventually, processes_of, serve_matmul, still_answers
from jobs_bench import processes_with

from modelyard.client import Yard
from modelyard.errors import ModelyardError
from modelyard.jobs import sandbox
from modelyard.testing import yard

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="bubblewrap does not run here")
MARK = f"mark-{os.getpid()}-module"
WHERE = {"import": "modelyard.jobs.worker", "replica": "modelyard.serving.replica"}
MODULE = """
import os, signal, socket, subprocess, sys, time
import torch

def attack():
    {attack}

if sys.modules["__main__"].__spec__.name == "{where}":
    attack()

class Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        return x * self.w
"""
# What a module does, and the words of the error, where it is imported and where it is served.
GONE = "FileNotFoundError: [Errno 2] No such file or directory"
ATTACKS = {
    "another project": ("open({blob!r}).read()", GONE, GONE),
    "shadow": ("open('/etc/shadow').read()", GONE, GONE),
    "database": ("open({database!r}).read()", GONE, GONE),
    "network": ("socket.create_connection(('127.0.0.1', {port}), 2)", "Connection refused", "Connection refused"),
    "signal": (
        "os.kill(os.getppid(), signal.SIGKILL); os.kill({supervisor}, signal.SIGKILL)",
        "ProcessLookupError",
        "ProcessLookupError",
    ),
    "exits": ("sys.exit(7)", "sys.exit(7)", "SystemExit: 7"),
    "raises": ("raise RuntimeError('an evil word')", "RuntimeError: an evil word", "RuntimeError: an evil word"),
    "never returns": ("time.sleep(600)", "no sign of life from any rank for 12 s", "not ready within 20 s"),
    "memory": ("held = [bytearray(64 << 20) for _ in range(10_000)]", "ran out of memory", "MemoryError"),
    "outlives": (
        "subprocess.Popen(['sh', '-c', 'sleep 600; true', {mark!r}], start_new_session=True); raise OSError('left')",
        "It left 2 processes running, which the platform ended",
        "PermissionError",  # a replica begins no session
    ),
}


@pytest.fixture(scope="module")
def owner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Of a platform whose ranks may be silent for as long as the parameter says."""
    folder = tmp_path_factory.mktemp("modules")
    limits = {"JOB_HEARTBEAT": request.param, "JOB_MEMORY": str(2_500_000_000), "REPLICA_TIMEOUT": "20", "JOB_RESTARTS": "0"}
    with yard(folder / "yard", **{f"MODELYARD_{name}": value for name, value in limits.items()}) as client:
        serve_matmul(client, folder, "matmul")
        yield client


@pytest.fixture(scope="module")
def data(owner: Yard) -> Path:
    assert owner.profile.file is not None
    return owner.profile.file.parent


@pytest.fixture(scope="module")
def wire(owner: Yard) -> Wire:
    return Wire(owner.profile.url, owner.profile.key)


@pytest.fixture
def evil(owner: Yard, data: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a module that attacks where it is told to, and weights for it."""
    (supervisor,) = [pid for pid, argv in processes_of(data) if "up" in argv]
    rival = next((data / "store" / "projects" / "default" / "blobs").rglob("*/*"))
    port = int(owner.profile.url.rpartition(":")[2])  # the platform's own, which anybody outside the sandbox can reach
    names = {"blob": str(rival), "database": str(data / "modelyard.db"), "supervisor": supervisor, "mark": MARK, "port": port}

    def write(attack: str, where: str) -> Path:
        (tmp_path / "evil.py").write_text(MODULE.format(attack=attack.format(**names), where=WHERE[where]))
        torch.save({"w": torch.ones(1)}, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def bring(owner: Yard, name: str, weights: Path) -> None:
    owner.import_model(name, weights, module=f"{weights.with_name('evil.py')}:Evil", inputs=["x:FP32[-1,1]"])


@pytest.mark.parametrize("owner", ["12"], indirect=True)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_module_that_attacks_at_import_fails_its_import(
    owner: Yard, wire: Wire, evil: Callable[[str, str], Path], attack: str
) -> None:
    code, words, _ = ATTACKS[attack]
    with pytest.raises(ModelyardError) as failed:
        bring(owner, "evil", evil(code, "import"))
    assert words in failed.value.message
    assert words in owner.jobs()[0]["error"]["message"]
    assert "evil" not in [model["name"] for model in owner.models()]
    assert not processes_with(MARK)
    still_answers(wire)


# By a replica's walls, which are a gang's, each is stopped as at import: all of them are tried again in the soak.
SERVED = [
    attack if attack in ("network", "memory", "exits") else pytest.param(attack, marks=pytest.mark.soak) for attack in ATTACKS
]


@pytest.mark.parametrize("owner", ["120"], indirect=True)
@pytest.mark.parametrize("attack", SERVED)
def test_a_module_that_attacks_where_it_is_served_fails_its_deployment(
    owner: Yard, wire: Wire, evil: Callable[[str, str], Path], attack: str
) -> None:
    code, _, words = ATTACKS[attack]
    name = f"served-{attack.replace(' ', '-')}"
    bring(owner, name, evil(code, "replica"))
    owner.deploy(name, name, engine="torch", wait=False)
    eventually(lambda: words in (owner.deployment(name)["error"] or ""), 90)
    owner.undeploy(name)
    eventually(lambda: not processes_with(MARK), 10)
    still_answers(wire)
