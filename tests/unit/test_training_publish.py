import json
import re

import pytest
import torch
from torch import nn

from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.engines.torch import read_weights
from modelyard.errors import Invalid
from modelyard.training.publish import by_hand, load_weights, readme, save_weights, split_metrics
from modelyard.training.recipes import Made

ABOUT = {
    "metrics": {"train": {"loss": 0.25}, "select": {"loss": 0.5}},
    "parameters": 1234,
    "dataset": {"reference": "rooms@1", "hash": "h"},
    "recipe": "module",
}


@pytest.mark.parametrize("weights", ["model.pth", "model.safetensors"])
def test_the_card_has_front_matter_of_the_hub_and_code_that_compiles(tmp_path, weights):
    module = ModuleCard(file="model.py", name="Net", arguments={"wide": 3})
    x, y = (TensorCard(name=name, datatype="FP32", shape=(-1, 1)) for name in "xy")
    files = {"weights": weights}
    card = ModelCard(
        task="tabular-regression", engines=("torch",), files=files, inputs=(x,), outputs=(y,), module=module, transform={}
    )
    text = readme(Made("model", tmp_path, card, "", by_hand(module, weights), title="Net"), ABOUT)
    front = dict(line.split(": ", 1) for line in text.split("---\n")[1].splitlines())
    assert json.loads(front["pipeline_tag"]) == "tabular-regression"
    assert json.loads(front["datasets"]) == ["rooms@1"]
    (result,) = json.loads(front["model-index"])[0]["results"]
    assert result["metrics"] == [{"type": "loss", "value": 0.5}]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(code, "card", "exec")
    assert weights in code
    assert "| select | loss | 0.5000 |" in text


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_are_a_plain_state_dict_and_the_same_bytes_each_time(tmp_path, name):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_weights(network.state_dict(), tmp_path / folder / name)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    read = read_weights(tmp_path / "a" / name)
    assert read.keys() == network.state_dict().keys()
    assert all(torch.equal(read[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_one_parameter_of_two_names_is_kept_under_both(tmp_path, name):
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    save_weights(network.state_dict(), tmp_path / name)
    weights = read_weights(tmp_path / name)
    assert set(weights) == set(network.state_dict())
    assert torch.equal(weights["1.weight"], network[0].weight)


def test_metrics_by_split():
    last = {"epoch": 3, "loss": 0.1, "accuracy": 0.9, "select_loss": 0.2, "select_accuracy": 0.8}
    assert split_metrics(last) == {"train": {"loss": 0.1, "accuracy": 0.9}, "select": {"loss": 0.2, "accuracy": 0.8}}


def test_only_a_model_version_can_be_continued(tmp_path):
    with pytest.raises(Invalid, match=r"no model\.json"):
        load_weights(nn.Linear(1, 1), tmp_path)
