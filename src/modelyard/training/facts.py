"""What a rank tells of its training: where the time of a step goes, samples a second, memory, and what it all rests on.

`loop` laps the clock at the borders of its phases and reports `Clock.facts` at each epoch's end; `modelyard job show` prints
them. Nothing here waits for a device: on a GPU, where the host runs ahead, forward and backward are the time it took to hand
them over, and the rest of a step shows up in whatever waits for it first.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

import modelyard
from modelyard.kinds import Input
from modelyard.training import flops

# The phases of a step, and what comes between steps.
STEP, BETWEEN = ("data", "forward", "backward", "optimiser"), ("evaluation", "checkpoint")
_CPU = torch.device("cpu")
_LIBRARIES = ("torch", "numpy", "safetensors")


class Still:
    """Called in the thread that made it: for how many seconds of its life it has stood still, neither computing nor waiting for
    a processor. In forward and backward on processors that is for other ranks, or for the interpreter while another thread of
    this rank holds it (a streamed feed's, a checkpoint's)."""

    def __init__(self) -> None:
        self._began = time.perf_counter() - time.thread_time()
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # elsewhere than on Linux, waiting for a processor counts as standing still
            self._file = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self) -> float:
        fields = os.pread(self._file, 64, 0).split()
        queued = int(fields[1]) / 1e9 if len(fields) > 1 else 0.0
        return time.perf_counter() - self._began - time.thread_time() - queued

    def __del__(self) -> None:
        os.close(self._file)


class Clock:
    """Seconds by phase since it was made. A lap ends where the next begins, so that every moment is in one phase. `still` tells
    for how long this thread has waited for other ranks, where there are any and that can be told (`Still`); `device` is what
    this rank computes on."""

    def __init__(self, still: Callable[[], float] | None = None, device: torch.device = _CPU) -> None:
        self.seconds = dict.fromkeys((*STEP, *BETWEEN, "other"), 0.0)
        self.steps = 0
        self._device = device
        self.work, self.ranks = 0.0, 1  # FLOPs of a step, over so many ranks
        self.peak: float | None = None  # FLOPs a second that the device can do
        self.communication: float | None = None
        self._told = still is not None
        self._still = still or (lambda: 0.0)
        self._waited = {"forward": 0.0, "backward": 0.0}
        self._entered = self._forward = self._entered_still = self._forward_still = 0.0
        self._last, self._last_still = time.perf_counter(), self._still()

    def watch(self, parts: Iterable[nn.Module]) -> None:
        """Time the forward of what this rank holds, by hooks: the loop sees forward and backward only together."""
        for part in parts:
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)

    def lap(self, phase: str) -> None:
        """What went by since the last lap was this phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last, self._last_still = now, self._still()

    def computed(self) -> None:
        """What went by was forward and backward of one step."""
        forward, self._forward = self._forward, 0.0
        waited, self._forward_still = self._forward_still, 0.0
        self._waited["forward"] += waited
        self._waited["backward"] += max(0.0, self._still() - self._last_still - waited)
        self.lap("backward")
        self.seconds["backward"] -= forward
        self.seconds["forward"] += forward
        self.steps += 1

    def listen(self, model: object) -> None:
        """Take over what DDP measured of its own exchange: seconds a step that backward did not hide. On a GPU that is all
        there is: other strategies do not say, and the thread does not wait there."""
        data: Mapping[str, Any] = getattr(model, "_get_ddp_logging_data", dict)()
        if spent := int(data.get("avg_backward_comm_time", 0)):
            self.communication = max(0, spent - int(data.get("avg_backward_compute_comm_overlap_time", 0))) / 1e9

    def facts(self, samples: int) -> dict[str, Any]:
        """What is reported: milliseconds of a mean step by phase, seconds between steps, samples a second while training."""
        training = sum(self.seconds[phase] for phase in STEP)
        step = {phase: _ms(self.seconds[phase], self.steps) for phase in STEP}
        if self._told:
            waited = {phase: _ms(seconds, self.steps) for phase, seconds in self._waited.items()}
            step |= {phase: round(max(0.0, step[phase] - ms), 3) for phase, ms in waited.items()}
            step["communication"] = round(sum(waited.values()), 3)
        elif self.communication is not None:
            exposed = min(round(self.communication * 1e3, 3), step["backward"])
            step |= {"backward": round(step["backward"] - exposed, 3), "communication": exposed}
        return {
            "step_ms": step,
            "samples_per_second": round(samples / training, 1) if training else 0.0,
            **flops.figures(self.work, self.ranks, training / self.steps if self.steps else None, self.peak),
            **{f"{phase}_seconds": round(self.seconds[phase], 3) for phase in BETWEEN},
            "memory_peak": peak_memory(self._device),
        }

    def _enter(self, part: nn.Module, given: Any) -> None:
        self._entered, self._entered_still = time.perf_counter(), self._still()

    def _leave(self, part: nn.Module, given: Any, answer: Any) -> None:
        if part.training:
            self._forward += time.perf_counter() - self._entered
            self._forward_still += self._still() - self._entered_still


def peak_memory(device: torch.device) -> int:
    """The most bytes this rank has held: of its GPU where it computes on one, else of main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
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
