"""Ranks that train a small network on a mesh, forked from one process that has imported what they need. Started by
`test_training_meshes.py`: a job a line on stdin, the ranks' exit codes a line on stdout."""

import json
import resource
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import mesh_models
import torch
import torch.distributed.checkpoint  # imported once, before the ranks are forked
from forked_ranks import serve
from safetensors.torch import save_file
from torch import optim
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

from modelyard.data import shards
from modelyard.errors import ModelyardError
from modelyard.kinds import FolderContext
from modelyard.training import checkpoint, staging
from modelyard.training.gang import join, repeatable
from modelyard.training.mesh import Mesh, parse
from modelyard.training.parallel import Options, home, spread, verify, whole
from modelyard.training.split import Split

STEPS, ROWS = 10, 11  # no axis divides 11: parts differ, pieces must be filled up


def made(job):
    """The network, what it declares, and the rows of all steps, as every rank has them."""
    kind, declared, batch, measure, _ = mesh_models.MODELS[job["model"]]
    torch.manual_seed(0)
    dtype = getattr(torch, job.get("dtype", "float64"))
    network = kind(**job.get("arguments", {})).to(dtype)
    draw = torch.Generator().manual_seed(1)
    rows = [batch(draw, ROWS + step % 2) for step in range(job.get("batches", STEPS))]
    rows = [rows[step % len(rows)] for step in range(STEPS)]
    rows = [tuple(t.to(dtype) if t.is_floating_point() else t for t in pair) for pair in rows]
    return network, {**declared, **job.get("declared", {})}, rows, measure


def alone(job, folder):
    """What is compared with: a script as anybody would write it."""
    network, _, rows, measure = made(job)
    optimiser = optim.AdamW(network.parameters(), lr=job.get("lr", mesh_models.MODELS[job["model"]][4]), weight_decay=0.1)
    losses, lengths = [], []
    for inputs, target in rows[: job.get("steps", STEPS)]:
        optimiser.zero_grad()
        loss, _ = measure(network(inputs), target)
        loss.backward()
        if job.get("clip"):
            lengths.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), job["clip"])))
        optimiser.step()
        losses.append(float(loss.detach()))
    save_file(copies(network.state_dict()), folder / "state.safetensors")
    return {"losses": losses, "lengths": lengths}


def together(job, folder, gang):
    """The same by `Spread`."""
    network, declared, rows, measure = made(job)
    mesh, options = Mesh(**parse(job["mesh"])), Options(**job.get("options", {}))
    where, most = home(mesh, gang.device), ROWS + 1
    network.to(where)
    check = [part[: mesh.replicas * options.count(mesh) + 1].to(where) for part in rows[0]]
    before = None if mesh.whole else whole(network, measure, gang, *check)
    split = getattr(network, "split", None) or Split.read(declared)
    it = spread(network, split, mesh, gang, options, measure, example=rows[0][0][:2].to(where), most=most)
    if before:
        verify(it, before, *(part.to(gang.device) for part in check))
    rows = [tuple(t.to(gang.device) for t in pair) for pair in rows]
    optimiser = optim.AdamW(it.parameters().values(), lr=job.get("lr", mesh_models.MODELS[job["model"]][4]), weight_decay=0.1)
    if job.get("resume"):
        checkpoint.load(Path(job["resume"]), it, optimiser)
    if job.get("broken"):
        keep_to_itself(it)
    losses, lengths, stage = [], [], staging.Stage(it, optimiser)
    with it.epoch():
        it.train(True)
        for step, (inputs, target) in enumerate(rows[job.get("first", 0) : job.get("last", STEPS)]):
            if step == job.get("save_at"):
                save(job, stage)
            optimiser.zero_grad()
            own = shards.share(len(target), mesh.replicas, it.place.replica)
            sums = it.step(inputs[own.start : own.stop], target[own.start : own.stop], len(target))
            if job.get("clip"):
                lengths.append(it.clip(job["clip"]))
            optimiser.step()
            loss, _, count = gang.sum(*sums)
            assert count == len(target)
            losses.append(loss / count)
    if job.get("save"):
        save(job, stage)
    kept = try_to_save(job, stage, gang.rank) if job.get("stage") else None
    it.train(False)
    inputs, target = rows[0]
    own = shards.share(len(target), mesh.replicas, it.place.replica)
    left = min(own.stop - own.start, it.capacity)
    scored = gang.sum(*it.score(inputs[own.start : own.start + left], target[own.start : own.start + left], left))
    state = it.full_state()
    if gang.rank == 0:
        save_file(copies(state), folder / "state.safetensors")
    return {
        "kept": kept,
        "device": str(gang.device),
        "losses": losses,
        "lengths": lengths,
        "scored": scored[0] / scored[2],
        "rows": scored[2],
    }


def keep_to_itself(it):
    """The control: a rank's gradients are not added up with those of others along `data` and, of what is whole, `tensor`."""
    collectives.dist = SimpleNamespace(**{**vars(torch.distributed), "all_reduce": lambda *given, **named: None})
    import_module("modelyard.training.parallel.spread").add_up = lambda parameters, group: None
    it.runner._exchange = lambda last: getattr(it.runner.model, "no_sync", nullcontext)()


def save(job, stage):
    folder = Path(job["save"])
    stage.take(folder, checkpoint.Progress(1, 2, curve=[{"epoch": 1, "loss": 0.1}]))(folder)


def try_to_save(job, stage, rank):
    """As the loop keeps one: what goes wrong is rank 0's to tell, and training goes on."""
    if job.get("full") == rank:  # as if the disk were, here alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["size"], resource.RLIM_INFINITY))
    write = stage.take(Path(job["stage"]), checkpoint.Progress(1, 2))
    try:
        write(Path(job["stage"]))
    except (OSError, RuntimeError) as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return None


def copies(state):
    """What is tied is saved twice."""
    return {name: tensor.clone() for name, tensor in state.items()}


def rank_main(job, rank):
    folder = Path(job["folder"])
    if job["mesh"] == "alone":
        with repeatable():
            (folder / "said-0.json").write_text(json.dumps(alone(job, folder)))
        return 0
    try:
        with repeatable(), join(FolderContext(folder, rank=rank, world_size=job["ranks"])) as gang:
            said = together(job, folder, gang)
    except ModelyardError as error:
        (folder / f"said-{rank}.json").write_text(json.dumps({"error": error.code, "message": error.message}))
        return 3
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    serve(rank_main)
