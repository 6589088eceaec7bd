"""Which matrices get finer grids: those whose rounding costs most, as measured by rounding each alone."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_language
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_conversion_gguf import SIZE
from transformers import AutoTokenizer

from modelyard.errors import Invalid
from modelyard.optimisation.language.rounding import GRIDS, nearest
from modelyard.optimisation.language.sensitivity import allot, look
from modelyard.optimisation.language.walk import Walk
from modelyard.training.recipes.causal_lm import predict
from modelyard.training.recipes.packing import IGNORED, Document, pack


def apart(model, original, blocks) -> float:
    """The Kullback-Leibler divergence from the original, in nats a token."""
    inputs, counted = torch.from_numpy(blocks.inputs), torch.from_numpy(blocks.targets) != IGNORED
    with torch.no_grad():
        ours, theirs = (predict(each, inputs).log_softmax(-1) for each in (model, original))
    return float((theirs.exp() * (theirs - ours)).sum(-1)[counted].mean())


def test_what_a_matrix_costs_is_told_without_rounding_it(tmp_path):
    model = tiny_language.learned(tmp_path / "model", **SIZE)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    random, tokenizer = np.random.default_rng(0), AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [" ".join(random.choice(tiny_language.TEXTS, 4)) for _ in range(64)]
    blocks = pack([Document(np.array(tokenizer(text)["input_ids"])) for text in texts], 48, 0)
    kinds = dict.fromkeys(Walk(model, lambda _: "q4_0").matrices(), "q4_0")
    found = look(model, kinds, blocks, seed=0)
    told = {name: cost["q4_0"] for name, cost in found.costs.items()}
    for cost in found.costs.values():
        assert list(cost) == ["q4_0", "q5_0", "q8_0"]
        assert cost["q5_0"] == pytest.approx(cost["q4_0"] / 4, rel=0.2)
        assert cost["q8_0"] < cost["q4_0"] / 150
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    original, really = tiny_language.learned(tmp_path / "again", **SIZE), {}
    for name in kinds:
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.copy_(nearest(before[name], "q4_0").values())
            really[name] = apart(model, original, blocks)
            weight.copy_(before[name])
    ratios = [told[name] / really[name] for name in kinds]
    assert min(ratios) > 0.3
    assert max(ratios) < 3
    most = max(really, key=really.__getitem__)
    assert told[most] > np.median(list(told.values()))
    assert set(found.tokens) == {name for name in kinds if "embed" not in name}
    for weights in found.tokens.values():
        assert weights.shape == blocks.targets.shape
        assert float(weights.mean()) == pytest.approx(1, rel=1e-4)
        assert not weights[torch.from_numpy(blocks.targets == IGNORED)].any(), "what foretells nothing counts for nothing"


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 100), st.booleans()), min_size=1, max_size=12),
    st.sampled_from(["q4_0", "q4_1", "q5_0"]),
    st.floats(4, 9),
)
def test_no_more_bits_are_spent_than_allowed_and_none_that_would_fit_is_left(found, kind, bits):
    sizes = {f"w{at}": 32 * size for at, (_, size, _) in enumerate(found)}
    kinds = {f"w{at}": "q8_0" if fixed else kind for at, (_, _, fixed) in enumerate(found)}
    cost = {f"w{at}": costs(kind, value) for at, (value, _, fixed) in enumerate(found) if not fixed}

    def spent(chosen):
        return sum(GRIDS[chosen.get(name, kinds[name])].bits * size for name, size in sizes.items())

    total = sum(sizes.values())
    if spent({}) > bits * total:
        with pytest.raises(Invalid, match=f"take {spent({}) / total:g} bits a weight already"):
            allot(cost, sizes, kinds, bits)
        return
    chosen = allot(cost, sizes, kinds, bits)
    assert spent(chosen) <= bits * total * (1 + 1e-9)
    for name in cost:
        own = GRIDS[chosen.get(name, kind)].bits
        for finer in [other for other, grid in GRIDS.items() if other in cost[name] and grid.bits > own]:
            assert finer == "q8_0" or spent({**chosen, name: finer}) > bits * total * (1 - 1e-9)


def costs(kind: str, own: float) -> dict[str, float]:
    """As the bits of a grid say: a quarter for each more."""
    finer = [other for other, grid in GRIDS.items() if grid.bits > GRIDS[kind].bits and not grid.offset]
    return {kind: own, **{other: own / 4 ** (GRIDS[other].bits - GRIDS[kind].bits) for other in finer}}


def test_the_dearest_a_bit_come_first():
    sizes, cost = {"a": 64, "b": 64, "c": 640}, {"a": 1.0, "b": 2.0, "c": 10.0}
    kinds = dict.fromkeys(sizes, "q4_0")
    ladder = {name: costs("q4_0", own) for name, own in cost.items()}
    assert allot(ladder, sizes, kinds, 4.5 + 64 / 768) == {"b": "q5_0"}
    assert allot(ladder, sizes, kinds, 5.5) == dict.fromkeys("abc", "q5_0")
    assert allot(ladder, sizes, kinds, 5.5 + 3 * 64 / 768) == {"a": "q5_0", "b": "q8_0", "c": "q5_0"}
    assert allot(ladder, sizes, kinds, 8.5) == dict.fromkeys("abc", "q8_0")


def test_a_grid_between_that_saves_little_is_left_out():
    costs = {"a": {"q4_0": 1.0, "q5_0": 0.99, "q8_0": 0.0}}
    assert allot(costs, {"a": 32}, {"a": "q4_0"}, 8.0) == {}
    assert allot(costs, {"a": 32}, {"a": "q4_0"}, 8.5) == {"a": "q8_0"}
