"""What is read off a model of transformers: its blocks, its order, the layers it parts; under LoRA too."""

import pytest
from torch import nn

from modelyard.training.recipes.splits import find_blocks, parts, sequence, split_of, tensor_plan


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2, 4), nn.Linear(4, 2)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop = nn.Embedding(5, 2), nn.Dropout()
        self.layers = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(2)


class Config:
    model_type = "own"
    num_attention_heads = 4
    num_key_value_heads = None


class Model(nn.Module):
    """In the form of a model of transformers."""

    _no_split_modules = ("Block",)
    _tp_plan = {"body.layers.*.up": "colwise", "body.layers.*.down": "rowwise", "head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.config, self.body, self.head = Config(), Body(), nn.Linear(2, 5, bias=False)


def test_a_model_says_its_blocks_its_order_and_its_layers():
    split = split_of(Model(), "model")
    assert split.blocks == "model.body.layers.*"
    assert split.sequence == ["model.body.embed", "model.body.layers.*", "model.body.norm", "model.head"]
    assert split.tensor == {"model.body.layers.*.up": "columns", "model.body.layers.*.down": "rows", "model.head": "gathered"}
    assert split.heads == {"model": ["config.num_attention_heads"]}


def test_what_is_tied_stays_whole():
    model = Model()
    model.head.weight = model.body.embed.weight
    assert "head" not in tensor_plan(model)[0]


@pytest.mark.parametrize(
    ("plan", "said"), [({"head": "moe_tp_experts"}, "not split here (moe_tp_experts)"), ({}, "says nothing of Model")]
)
def test_what_is_not_known_is_not_split(plan, said):
    model = Model()
    model._tp_plan = plan
    split = split_of(model, "model")
    assert not split.tensor
    assert said in split.silent


def test_without_blocks_there_is_no_order():
    model = Model()
    model._no_split_modules = None
    assert find_blocks(model) == ""
    assert not split_of(model, "model").sequence
    assert list(sequence(model, "body.layers")) == ["body.embed", "body.layers.*", "body.norm", "head"]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("columns", {".base_layer": "columns", ".lora_B.*": "columns"}),
        ("rows", {".base_layer": "rows", ".lora_A.*": "rows"}),
        ("scattered", {".base_layer": "scattered", ".lora_A.*": "scattered"}),
        ("gathered", {".base_layer": "gathered", ".lora_B.*": "gathered"}),
    ],
)
def test_lora_is_split_where_it_meets_its_layer(style, expected):
    layer = nn.Module()
    layer.base_layer = nn.Linear(2, 2)
    assert parts(layer, style) == expected
    assert parts(nn.Linear(2, 2), style) == {"": style}
