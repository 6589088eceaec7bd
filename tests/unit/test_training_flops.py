"""Operations are counted by what torch knows of each, and told against what a device can do."""

import pytest
import torch
from torch import nn

from modelyard.training.flops import counted, figures, peak


def test_a_linear_layer_is_three_products():
    """Forward, the gradient of its weight and that of its input: each two operations an element of each product."""
    network, inputs = nn.Linear(30, 20), torch.randn(7, 30, requires_grad=True)
    assert counted(lambda: network(inputs).sum().backward()) == 3 * 2 * 7 * 30 * 20


def test_what_cannot_be_counted_is_done_all_the_same():
    done = []

    def compute():
        done.append(torch.utils._python_dispatch._len_torch_dispatch_stack())
        if done[-1]:
            raise RuntimeError("not under a mode")

    assert counted(compute) == 0
    assert done == [1, 0]
    with pytest.raises(ZeroDivisionError):
        counted(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("name", "bf16", "float32"),
    [
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("Tesla T4", 65e12, 8.1e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA GeForce GTX 1080", None, None),
    ],
)
def test_a_device_is_known_by_its_name(name, bf16, float32):
    assert (peak(name, "bf16"), peak(name, "float32")) == (bf16, float32)


def test_utilisation_is_of_a_ranks_own_device():
    assert figures(8e12, 2, 0.1, 100e12) == {"flops_per_step": 8 * 10**12, "flops_per_second": 40 * 10**12, "utilisation": 0.4}
    assert figures(8e12, 2, 0.1, None)["utilisation"] is None
    assert figures(8e12, 2, None, 1e12) == {"flops_per_step": 8 * 10**12, "flops_per_second": None, "utilisation": None}
    assert figures(0.0, 2, 0.1, 100e12) == {}
