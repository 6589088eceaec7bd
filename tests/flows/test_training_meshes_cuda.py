"""The meshes that `test_training_meshes.py` always runs, in bf16 on GPUs, by NCCL: ten steps have the losses of one process in
float32 on a processor. Skipped where there are fewer GPUs than ranks.
"""

import math

import pytest
import torch
from test_training_meshes import COVER, Launcher, gang  # noqa: F401 - a fixture

LOSS = 1e-2


def needed(mesh: str) -> int:
    return math.prod(int(part.partition("=")[2]) for part in mesh.split(","))


@pytest.mark.parametrize(("model", "mesh"), [("llama", "data=1"), *COVER])
def test_a_mesh_of_gpus_learns_in_bf16_what_one_process_learns_in_float32(gang: Launcher, model: str, mesh: str) -> None:  # noqa: F811
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < needed(mesh):
        pytest.skip(f"{mesh} in bf16 by NCCL needs {needed(mesh)} GPU(s) of CUDA; there are {there}")
    said, state = gang(model, mesh, dtype="float32", options={"precision": "bf16"})
    assert "message" not in said[0], said[0]
    assert all(one["device"].startswith("cuda") for one in said), said
    alone, _ = gang.alone(model, dtype="float32")
    assert max(abs(a - b) for a, b in zip(said[0]["losses"], alone["losses"], strict=True)) <= LOSS
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
