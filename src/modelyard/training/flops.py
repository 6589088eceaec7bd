"""How many floating-point operations a step is, and how much that is of what the device can do.

`prepare` counts them once, while the network computes some rows before the first step; `loop` reports `figures` with the pace.
Counted is what torch knows the cost of: products of matrices, convolutions and attention, forward and backward, and those that
`recompute` does again are not counted again. So it is the model's work, as in "model FLOPs utilisation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

# FLOPs a second of a device by a part of its name, dense, as its maker states them: in bf16 (float16 where it has none), and in
# float32 as this platform computes it, without TF32.
_PEAKS = {
    "B200": (2250e12, 80e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
    "RTX 4090": (165e12, 82.6e12),
}


def counted(compute: Callable[[], object]) -> int:
    """Do it, and count its operations; 0 where they cannot be counted."""
    try:
        with FlopCounterMode(display=False) as counter:
            compute()
        return int(counter.get_total_flops())
    except Exception:  # noqa: BLE001 - the user's code, or the counter's: without it we see which
        compute()
        return 0


def peak(device: str, precision: str) -> float | None:
    """FLOPs a second that the device of this name can do at most; None: not known."""
    words = device.replace("-", " ").split()
    for name, (half, single) in _PEAKS.items():
        if all(word in words for word in name.split()):
            return half if precision == "bf16" else single
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """Of the device that a rank computes on; None where it is a processor, or unknown."""
    return peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def figures(step: float, ranks: int, seconds: float | None, peak: float | None) -> dict[str, Any]:
    """What is reported of a step of so many FLOPs over all ranks, one of which takes `seconds`: `utilisation` of each rank's
    device, None where its peak is not known. Nothing where the operations were not counted."""
    if not step:
        return {}
    each = step / ranks / seconds if seconds else None
    used = round(each / peak, 4) if each and peak else None
    return {"flops_per_step": int(step), "flops_per_second": each and round(each), "utilisation": used}
