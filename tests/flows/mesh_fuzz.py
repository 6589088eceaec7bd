"""A rank of a gang that runs a drawn case by the platform's own loop, and of the one process that it is compared with. As a
script it is the gang; started by `test_training_mesh_fuzz.py`."""

import faulthandler
import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import fuzz_alone
from forked_ranks import serve
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from modelyard.errors import Invalid
from modelyard.kinds import Cancelled, FolderContext, FolderOutputs, FolderView, Input
from modelyard.training import loop
from modelyard.training.config import TrainConfig
from modelyard.training.gang import repeatable

PATIENCE = 100  # seconds until a gang counts as hung


class Context(FolderContext):
    """Ends rank 0 after the `limit`-th step."""

    limit = 0

    def progress(self, done, total, unit="steps"):
        self.limit -= 1
        if self.limit == 0:
            raise Cancelled


def digests(network):
    """What this rank holds, by name and place: those that hold the same place must hold the same."""
    found = {}
    for name, tensor in network.state().items():
        start, own = [0] * tensor.dim(), tensor
        if isinstance(tensor, DTensor):
            _, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            own = tensor.to_local()
        text = own.detach().contiguous().numpy().tobytes()
        found[f"{name} {list(own.shape)} at {list(start)}"] = hashlib.sha256(text).hexdigest()
    return found


def rank_main(job, rank):
    """Returns the exit code: 0, 3 where it was refused (before a step) or 4 where it was cut off."""
    folder, case = Path(job["folder"]), job["case"]
    faulthandler.dump_traceback_later(PATIENCE * (4 if case["config"].get("compile") else 1), exit=True)
    inputs = {role: Input(role, {}, FolderView(Path(path), role)) for role, path in job["inputs"].items()}
    if job["mesh"] == "alone":
        with repeatable():
            given = case, Path(job["inputs"]["dataset"]), Path(job["inputs"]["code"])
            for name, stirred in (("stirred", 1e-16), ("alone", 0.0)):
                state, curve = fuzz_alone.alone(*given, stirred)
                save_file({key: tensor.clone() for key, tensor in state.items()}, folder / f"{name}.safetensors")
        (folder / "alone.json").write_text(json.dumps(curve))
        return 0
    context = Context(folder / "work", rank=rank, world_size=job["ranks"])
    context.limit = job["limit"]
    config = TrainConfig.model_validate(case["config"] | {"mesh": job["mesh"]})
    recipe, trainers, fit = loop.RECIPES.get("module"), [], loop.Trainer.fit
    if case["noise"]:
        loop.RECIPES.add("module", lambda *given: replace(recipe(*given), augment=fuzz_alone.noise))
    if case["streamed"]:  # nothing that was made is kept
        loop.Feed.read = partial(loop.Feed.read, kept=0)
    loop.Trainer.fit = lambda trainer: (trainers.append(trainer), fit(trainer))[1]
    said = folder / f"said-{rank}.json"
    said.unlink(missing_ok=True)
    try:
        loop.run(config, inputs, FolderOutputs(folder), context)
    except Invalid as error:
        said.write_text(json.dumps({"message": error.message, "steps": trainers[0].clock.steps if trainers else 0}))
        return 3
    except Cancelled:
        os._exit(4)  # as a killed rank
    said.write_text(json.dumps({"metrics": context.metrics, "digests": digests(trainers[0].network)}))
    return 0


if __name__ == "__main__":
    serve(rank_main)
