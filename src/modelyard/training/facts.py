"""What a rank tells of its training: where the time of a step goes, samples a second, memory, and what it all rests on.

`loop` laps the clock at the borders of its phases and reports `Clock.facts` at each epoch's end; `modelyard job show` prints
them. Nothing here waits for a device: on a GPU, where the host runs ahead, forward and backward are the time it took to hand
them over, and the rest of a step shows up in whatever waits for it first.
"""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

import modelyard
from modelyard.kinds import Input

# The phases of a step, and what comes between steps.
STEP, BETWEEN = ("data", "forward", "backward", "optimiser"), ("evaluation", "checkpoint")
_LIBRARIES = ("torch", "numpy", "safetensors")


class Clock:
    """Seconds by phase since it was made. A lap ends where the next begins, so that every moment is in one phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*STEP, *BETWEEN, "other"), 0.0)
        self.steps = 0
        self.communication: float | None = None
        self._entered = self._forward = 0.0
        self._last = time.perf_counter()

    def watch(self, parts: Iterable[nn.Module]) -> None:
        """Time the forward of what this rank holds, by hooks: the loop sees forward and backward only together."""
        for part in parts:
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)

    def lap(self, phase: str) -> None:
        """What went by since the last lap was this phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def computed(self) -> None:
        """What went by was forward and backward of one step."""
        forward, self._forward = self._forward, 0.0
        self.lap("backward")
        self.seconds["backward"] -= forward
        self.seconds["forward"] += forward
        self.steps += 1

    def listen(self, model: object) -> None:
        """Take over what DDP measured of its own exchange: seconds a step that backward did not hide. Other strategies exchange
        within forward and backward and do not say how long."""
        data: Mapping[str, Any] = getattr(model, "_get_ddp_logging_data", dict)()
        if spent := int(data.get("avg_backward_comm_time", 0)):
            self.communication = max(0, spent - int(data.get("avg_backward_compute_comm_overlap_time", 0))) / 1e9

    def facts(self, samples: int) -> dict[str, Any]:
        """What is reported: milliseconds of a mean step by phase, seconds between steps, samples a second while training."""
        training = sum(self.seconds[phase] for phase in STEP)
        step = {phase: _ms(self.seconds[phase], self.steps) for phase in STEP}
        if self.communication is not None:
            exposed = min(round(self.communication * 1e3, 3), step["backward"])
            step |= {"backward": round(step["backward"] - exposed, 3), "communication": exposed}
        return {
            "step_ms": step,
            "samples_per_second": round(samples / training, 1) if training else 0.0,
            **{f"{phase}_seconds": round(self.seconds[phase], 3) for phase in BETWEEN},
            "memory_peak": peak_memory(),
        }

    def _enter(self, part: nn.Module, given: Any) -> None:
        self._entered = time.perf_counter()

    def _leave(self, part: nn.Module, given: Any, answer: Any) -> None:
        if part.training:
            self._forward += time.perf_counter() - self._entered


def peak_memory() -> int:
    """The most bytes this rank has held: of its GPU where it has one, else of main memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    """The environment that a result may depend on."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "modelyard": modelyard.__version__,
        "python": platform.python_version(),
        **(libraries | {"torch": str(torch.__version__)}),
        "machine": platform.machine(),
    }


def grounds(seed: int, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """What a run rests on: seed, the hashes of data and code, the environment."""
    return {"seed": seed, "hashes": {role: one.view.hash for role, one in inputs.items()}, "environment": versions()}


def _ms(seconds: float, steps: int) -> float:
    return round(1e3 * seconds / steps, 3) if steps else 0.0
