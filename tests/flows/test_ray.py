"""A real Ray cluster of several nodes: gangs across them, the loss of one, control's end, and replicas."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jobs_bench import Bench, bench, eventually, processes_with
from ray_cluster import cluster

from modelyard import work
from modelyard.client import Yard
from modelyard.data.config import ImportDatasetConfig
from modelyard.data.importing import run as import_dataset
from modelyard.errors import ModelyardError, Unavailable
from modelyard.jobs import service
from modelyard.jobs.types import State, Submission, Target
from modelyard.kinds import FolderContext, FolderOutputs
from modelyard.testing import yard

MODULE = """
from torch import nn

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return self.scale(x)
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with cluster(2, 2, 2) as made:
        yield made


@pytest.fixture
def there(ray: Any, tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path / "yard", cluster=ray[1]) as made:
        yield made


def lose(ray: Any, node: str) -> None:
    """End a node of the cluster at once."""
    (raylet,) = [one for one in ray[0].worker_nodes if node.endswith(one.node_id[:8])]
    ray[0].remove_node(raylet, allow_graceful=False)


def line_of(pid: int) -> list[tuple[int, str]]:
    """A process, its parent and so on: number and command line."""
    found = []
    while pid > 1:
        found.append((pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")))
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def steps(there: Bench, job: str) -> list[int]:
    return [event["step"] for event in there.events(job) if event["type"] == "metric"]


def begun(there: Bench, job: str) -> list[str]:
    return sorted(line for line in there.log(job).splitlines() if line.startswith("begins"))


def test_a_gang_across_nodes_survives_the_loss_of_one(ray: Any, there: Bench) -> None:
    job = there.submit("crosses", ranks=4, number=6, rank=3)
    there.until(lambda: 3 in steps(there, job))
    first = there.scheduler._active[job].nodes
    assert [ranks for _, ranks in first] == [2, 2]
    assert begun(there, job) == ["begins at 0 with 2 of 4 ranks here"] * 4
    lost = next(name for name, _ in first if any(name.endswith(one.node_id[:8]) for one in ray[0].worker_nodes))
    lose(ray, lost)
    (ended,) = there.finish(job)
    assert (ended.state, ended.attempt) == (State.succeeded, 2), there.log(job)
    assert f"attempt 1 was lost and is started again: The node {lost} was lost." in there.log(job)
    assert begun(there, job)[4:] == ["begins at 3 with 2 of 4 ranks here"] * 4
    assert steps(there, job) == [1, 2, 3, 4, 5, 6]
    assert {e["values"]["ranks"] for e in there.events(job) if e["type"] == "metric"} == {4.0}
    assert lost not in {node.name for node in there.executor.nodes() if not node.away}


def test_a_new_control_ends_what_the_last_one_left_and_starts_it_again(there: Bench) -> None:
    job = there.submit("counts", number=4, rank=2)
    (pid,) = there.until(lambda: there.job(job).facts and there.job(job).pids)
    there.lose_control()
    assert Path(f"/proc/{pid}").exists()
    there.start()
    (ended,) = there.finish(job)
    assert (ended.state, ended.attempt, ended.abandoned) == (State.succeeded, 2, 1), there.log(job)
    assert "begins at 2" in there.log(job)
    assert not Path(f"/proc/{pid}").exists()


def test_a_parent_that_waits_leaves_its_room_to_its_children(there: Bench) -> None:
    job = there.run("parent", number=3, resources={"cpus": 2})
    assert job.state is State.succeeded, there.log(job.id)


def again(platform: Yard) -> Any:
    """What is answered; nothing while there is no replica."""
    with suppress(Unavailable):
        return answered(platform)


def answered(platform: Yard) -> Any:
    return next(iter(platform.predict("twice", {"x": [[3.0, 4.0]]}).outputs.values())).tolist()


def test_a_replica_on_the_cluster_answers_and_is_replaced_with_its_node(ray: Any, tmp_path: Path) -> None:
    import torch

    (tmp_path / "model.py").write_text(MODULE)
    torch.save({"scale.weight": torch.tensor([[1.0, 2.0]])}, tmp_path / "twice.pth")
    with yard(tmp_path / "yard", "--cluster", ray[1]) as platform:
        module = f"{tmp_path / 'model.py'}:Twice"
        platform.import_model("twice", tmp_path / "twice.pth", module=module, inputs=["x:FP32[-1,2]"])
        platform.deploy("twice", "twice")
        assert answered(platform) == [[11.0]]
        pid = next(pid for pid in processes_with(f"{tmp_path}/yard/cache") if "modelyard.serving.replica" in line_of(pid)[0][1])
        os.kill(next(pid for pid, command in line_of(pid) if "ray::Host" in command), signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}").exists())
        eventually(lambda: again(platform) == [[11.0]])


def weights(platform: Yard, folder: Path) -> bytes:
    """Of the digits, trained by two ranks."""
    platform.import_dataset("digits", "sklearn:digits")
    platform.train("cnn", "digits", recipe="image-classifier", ranks=2, epochs=2)
    (file,) = platform.fetch("cnn@1", folder / "fetched").glob("*.safetensors")
    return file.read_bytes()


@pytest.mark.soak
def test_training_across_nodes_gives_the_weights_that_one_machine_gives(tmp_path: Path) -> None:
    with cluster(1, 1) as (_, address), yard(tmp_path / "many", "--cluster", address) as platform:
        across = weights(platform, tmp_path / "many")
    with yard(tmp_path / "one") as platform:
        assert weights(platform, tmp_path / "one") == across


def shard_training(yard: Bench, folder: Path) -> str:
    """Two ranks, each of which takes all that a node has, hold halves of a network of the digits."""
    folder.mkdir()
    outputs = FolderOutputs(folder)
    import_dataset(ImportDatasetConfig(source="sklearn:digits"), {}, outputs, FolderContext(folder))
    yard.kinds.add("train", work.TRAIN)
    asked = Submission(
        kind="train",
        config={"epochs": 8, "seed": 7, "mesh": "shard=2", "checkpoint_steps": 4, "image_classifier": {"width": 8}},
        inputs={"dataset": f"artefact:{yard.artefact(outputs.published['dataset']['folder'])}"},
        ranks=2,
        resources={"cpus": 2},
        target=Target(kind="model", name="m"),
    )
    with yard.db.begin() as session:
        job = service.submit(session, yard.principal, asked, yard.kinds, nodes=yard.executor.nodes())
    yard.scheduler.wake()
    return job.id


def staging(yard: Bench, job: str) -> list[Path]:
    return [folder for attempt in (yard.settings.jobs / job).glob("*") for folder in (attempt / "work").glob("checkpoint-*")]


@pytest.mark.soak
def test_a_node_lost_while_a_checkpoint_is_kept_costs_no_weights(tmp_path: Path) -> None:
    with cluster(2, 2, 2) as ray, bench(tmp_path / "many", cluster=ray[1], job_memory=2 << 30) as many:
        job = shard_training(many, tmp_path / "digits")
        # after the second checkpoint, so that there is a whole one to go on from
        many.until(lambda: (many.job(job).progress or {}).get("done", 0) > 12 and staging(many, job), 120)
        first = many.scheduler._active[job].nodes
        assert [ranks for _, ranks in first] == [1, 1]
        lost = next(name for name, _ in first if any(name.endswith(one.node_id[:8]) for one in ray[0].worker_nodes))
        assert staging(many, job)
        lose(ray, lost)
        many.until(lambda: many.job(job).state.ended, 180)
        ended = many.job(job)
        assert (ended.state, ended.attempt) == (State.succeeded, 2), many.log(job)
        assert "resumed after" in many.log(job)
        across = [output["hash"] for output in ended.outputs]
    with bench(tmp_path / "one", job_cpus=4, job_memory=2 << 30) as one:
        job = shard_training(one, tmp_path / "again")
        one.until(lambda: one.job(job).state.ended, 180)
        assert [output["hash"] for output in one.job(job).outputs] == across


def imported(platform: Yard) -> bool:
    try:
        return bool(platform.import_dataset("digits", "sklearn:digits"))
    except ModelyardError:
        return False


@pytest.mark.soak
def test_a_cluster_of_its_own_is_started_again_and_ends_with_the_platform(tmp_path: Path) -> None:
    with yard(tmp_path / "yard", "--cluster", "ray") as platform:
        heads = [line_of(pid) for pid in processes_with("--temp-dir")]
        ours = [line[0][1] for line in heads if any(str(tmp_path) in command for _, command in line)]
        (head,) = [command for command in ours if " start --head " in command]
        folder = Path(head.partition("--temp-dir ")[2].split()[0])
        (raylet,) = [pid for pid in processes_with(str(folder)) if "/raylet/raylet " in line_of(pid)[0][1]]
        assert imported(platform)
        os.kill(raylet, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{raylet}").exists())
        eventually(lambda: imported(platform), 120)
    eventually(lambda: not processes_with(str(folder)))
    assert not folder.exists()


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves its server's log files open
def test_a_cluster_is_used_over_rays_own_client(tmp_path: Path) -> None:
    """The platform's machine is no node then: it asks the cluster over one port."""
    with socket.create_server(("127.0.0.2", 0)) as found:
        port = found.getsockname()[1]
    import torch

    (tmp_path / "model.py").write_text(MODULE)
    torch.save({"scale.weight": torch.tensor([[1.0, 2.0]])}, tmp_path / "twice.pth")
    with cluster(2, client=port), yard(tmp_path / "yard", "--cluster", f"ray://127.0.0.2:{port}") as platform:
        assert imported(platform)
        trained = platform.train("cnn", "digits@1", recipe="image-classifier", ranks=2, epochs=1)
        assert (trained["name"], trained["version"]) == ("cnn", 1)
        module = f"{tmp_path / 'model.py'}:Twice"
        platform.import_model("twice", tmp_path / "twice.pth", module=module, inputs=["x:FP32[-1,2]"])
        platform.deploy("twice", "twice")
        assert answered(platform) == [[11.0]]
