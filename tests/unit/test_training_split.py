import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modelyard.errors import Invalid
from modelyard.training.mesh import Mesh
from modelyard.training.split import Split, balance, layout


class Net(nn.Module):
    def __init__(self, width=6, heads=3):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(8, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(3))
        self.head = nn.Linear(width, 8)


FULL = {
    "tensor": {"layers.*.0": "columns", "layers.*.1": "rows"},
    "blocks": "layers.*",
    "sequence": ["embed", "layers.*", "head"],
}


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ([], "is a dict of 'tensor', 'heads', 'blocks' and 'sequence'"),
        ({"shard": 2}, "is a dict of"),
        ({"tensor": {"embed": "diagonal"}}, "one of columns, rows, gathered"),
        ({"tensor": ["embed"]}, "one of columns"),
        ({"heads": {"layers.*": "heads"}}, "names of attributes"),
        ({"blocks": ["layers.*"]}, "is one pattern"),
        ({"sequence": "layers.*"}, "is a list of patterns"),
    ],
)
def test_a_declaration_of_another_form_is_refused(declared, told):
    with pytest.raises(Invalid, match=told):
        Split.read(declared)


@pytest.mark.parametrize(
    ("declared", "mesh", "told"),
    [
        ({}, Mesh(tensor=2), "does not say which layers can be computed in parts"),
        ({"tensor": {"layers.*.9": "columns"}}, Mesh(tensor=2), r"layers\.\*\.9"),
        (FULL, Mesh(tensor=4), "which the axis tensor=4 does not divide"),
        ({**FULL, "heads": {"head": ["out_features"]}}, Mesh(tensor=3), "which the axis tensor=3 does not divide"),
        ({}, Mesh(pipe=2), "sequence"),
        ({**FULL, "sequence": ["embed", "layers.*"]}, Mesh(pipe=2), "head"),
        ({**FULL, "sequence": ["embed", "layers.*", "tail"]}, Mesh(pipe=2), "tail"),
    ],
)
def test_what_a_network_does_not_have_is_refused(declared, mesh, told):
    with pytest.raises(Invalid, match=told):
        layout(Split.read(declared), Net(), mesh, stages=mesh.pipe)


def test_more_stages_than_sub_modules_are_refused():
    with pytest.raises(Invalid, match=r"5|stages"):
        layout(Split.read(FULL), Net(), Mesh(pipe=9), stages=9)


def test_parameters_tied_across_stages_are_refused():
    network = Net()
    network.head.weight = network.embed.weight
    layout(Split.read(FULL), network, Mesh(data=2))
    with pytest.raises(Invalid, match=r"embed\.weight|head\.weight"):
        layout(Split.read(FULL), network, Mesh(pipe=2), stages=2)


def test_no_border_lies_between_columns_and_rows():
    network = nn.Sequential(nn.Linear(40, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    split = Split.read({"tensor": {"0": "columns", "2": "rows"}, "sequence": ["*"]})
    assert layout(split, network, Mesh(pipe=2), stages=2).stages == (("0", "1"), ("2", "3", "4"))
    assert layout(split, network, Mesh(tensor=2, pipe=2), stages=2).stages == (("0", "1", "2", "3"), ("4",))
    with pytest.raises(Invalid, match=r"2 parts that learn and can be held apart \('0 \+ 1 \+ 2 \+ 3', '4'\); 3 stages"):
        layout(split, network, Mesh(tensor=2, pipe=3), stages=3)


def test_recomputing_needs_blocks():
    with pytest.raises(Invalid, match="blocks"):
        layout(Split(), Net(), Mesh(), recompute=True)
    assert layout(Split.read(FULL), Net(), Mesh(), recompute=True).blocks == ("layers.0", "layers.1", "layers.2")


def test_a_layout_names_every_layer_and_stage():
    plan = layout(Split.read(FULL), Net(), Mesh(tensor=2, pipe=2), stages=2)
    assert plan.tensor["layers.2.1"] == "rows"
    assert [unit for stage in plan.stages for unit in stage] == ["embed", "layers.0", "layers.1", "layers.2", "head"]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.data())
def test_stages_are_balanced(sizes, data):
    parts = data.draw(st.integers(1, len(sizes)))
    found = balance(sizes, parts)
    assert [at for part in found for at in part] == list(range(len(sizes)))
    assert len(found) == parts
    assert all(len(part) for part in found)
    largest = max(sum(sizes[at] for at in part) for part in found)
    assert largest <= max(sizes) + -(-sum(sizes) // parts)
