"""The recipe `tabular`: what it makes of columns, what it refuses, and that it learns; trained in this process."""

from pathlib import Path

import numpy as np
import pytest
import tiny_datasets
import torch

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.datasets import Dataset, Feature
from modelyard.data.importing import run as import_dataset
from modelyard.data.statistics import gather
from modelyard.data.transforms import build
from modelyard.engines.base import ModelCard
from modelyard.engines.torch import TorchEngine, load_class
from modelyard.errors import Invalid, NotFound
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.optimisation.evaluate import r2
from modelyard.optimisation.examples import Source
from modelyard.tensors import DATATYPES
from modelyard.training.config import TrainConfig
from modelyard.training.loop import run
from modelyard.training.mesh import Mesh
from modelyard.training.recipes import RECIPES
from modelyard.training.split import layout

TOWNS = ("Bern", "Zug", None)
FEATURES = {
    "area": Feature(type="float"),
    "rooms": Feature(type="int"),
    "town": Feature(type="text"),
    "note": Feature(type="text"),
    "photo": Feature(type="image"),
    "price": Feature(type="float"),
    "level": Feature(type="float"),
    "since": Feature(type="float"),
    "kind": Feature(type="label", names=("flat", "house")),
    "only": Feature(type="label", names=("flat",)),
}


def rows(count: int, **more: list) -> dict[str, list]:
    """Columns of which some miss values; `more` replaces some."""
    return {
        "area": [None if n % 5 == 0 else 50.0 + n for n in range(count)],
        "rooms": [n % 4 for n in range(count)],
        "town": [TOWNS[n % 3] for n in range(count)],
        "note": [f"note {n}" for n in range(count)],
        "photo": [tiny_datasets.png(n) for n in range(count)],
        "price": [2000.0 + n for n in range(count)],
        "level": [3.0] * count,
        "since": [1.7e9 + 11 * n for n in range(count)],
        "kind": [n % 2 for n in range(count)],
        "only": [0] * count,
        **more,
    }


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Dataset:
    """In the select split other numbers, and towns that train has not; imported like any other."""
    folder = tmp_path_factory.mktemp("homes")
    splits = {"train": rows(60), "calibrate": rows(9), "select": rows(9, area=[1e6] * 9, town=["Rom"] * 9), "report": rows(9)}
    return written(folder, splits)


def written(folder: Path, splits: dict[str, dict[str, list]]) -> Dataset:
    """As dataset import writes it, statistics and all."""
    dataset = tiny_datasets.write(folder, FEATURES, splits, "price")
    features = {}
    for name, feature in FEATURES.items():
        found = {}
        for split, columns in splits.items():
            statistics = gather(feature)
            for value in columns[name]:
                statistics.add(value)
            found[split] = statistics.result()
        features[name] = feature.model_copy(update={"statistics": found})
    dataset.card.model_copy(update={"features": features}).save(folder)
    return Dataset.open(folder)


def plan(dataset: Dataset, **options):
    return RECIPES.get("tabular")(TrainConfig(recipe="tabular", tabular=options), dataset, None)


def test_columns_become_what_the_train_split_says_of_them(homes):
    made = plan(homes, inputs=["area", "rooms", "town"])
    area, rooms, town = made.transform.config["columns"]
    known = [50.0 + n for n in range(60) if n % 5]
    assert (area["mean"], area["std"]) == (pytest.approx(np.mean(known)), pytest.approx(np.std(known)))
    assert area["indicator"]
    assert (rooms["datatype"], rooms.get("indicator")) == ("INT64", None)
    assert (town["categories"], town["others"]) == (["", "Bern", "Zug"], True)
    assert made.network.embed.in_features == 6


def test_missing_numbers_missing_texts_and_new_categories_have_a_place(homes):
    made = plan(homes, inputs=["area", "town"])
    area = made.transform.config["columns"][0]
    given = {"area": np.array([np.nan, area["mean"] + area["std"], 1e6]), "town": np.array(["", "Zug", "Rom"], object)}
    matrix = made.before(given)
    assert matrix[0].tolist() == [0, 1, 1, 0, 0]
    assert matrix[1].tolist() == [pytest.approx(1), 0, 0, 0, 1]
    assert matrix[2, 1:].tolist() == [0, 0, 0, 0]


def test_callers_send_what_was_trained_on(homes):
    names = ["area", "rooms", "town", "since"]
    made, columns = plan(homes, inputs=names), homes.columns("train", names)
    kinds = {column["name"]: column.get("datatype", "FP32") for column in made.transform.config["columns"]}
    assert kinds == {"area": "FP32", "rooms": "INT64", "town": "BYTES", "since": "FP64"}
    sent = {name: columns[name].astype(DATATYPES[kinds[name]]) for name in names if name != "town"}
    served = build(made.transform.config).before({**sent, "town": np.array([t.encode() for t in columns["town"]], object)})
    assert np.array_equal(made.before(columns), served["columns"])


def test_all_columns_are_inputs_but_the_target_and_what_is_left_out(homes):
    made = plan(homes, leave_out=["photo", "note", "kind", "only", "since"])
    assert made.features == ("area", "rooms", "town", "level")
    assert (made.task, made.target, made.labels) == ("tabular-regression", "price", None)
    named = plan(homes, target="kind", inputs=["area"])
    assert (named.task, named.labels) == ("tabular-classification", ("flat", "house"))


def test_a_target_of_numbers_is_learned_in_deviations_and_told_as_it_is(homes):
    made = plan(homes, inputs=["area"])
    mean, std = np.mean([2000.0 + n for n in range(60)]), np.std([2000.0 + n for n in range(60)])
    answer, wanted = torch.tensor([[0.0], [1.0]]), torch.tensor([mean + std, mean + std]).float()
    loss, _ = made.measure(answer, wanted)
    assert float(loss) == pytest.approx(0.5, rel=1e-3)
    assert made.figures(0.25) == {"rmse": pytest.approx(std / 2)}
    told = made.transform.after({"output": np.array([[0.0], [1.0]], np.float32)})["prediction"]
    assert told.tolist() == [pytest.approx(mean), pytest.approx(mean + std)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": ["aera"]}, r"No feature 'aera'\. Did you mean 'area'"),
        ({"leave_out": ["roms"]}, r"No feature 'roms'\. Did you mean 'rooms'"),
        ({"target": "wage"}, "No feature 'wage'"),
        ({"inputs": ["area", "price"]}, "'price' is the target; it cannot be an input as well"),
        ({"inputs": ["area"], "leave_out": ["area"]}, "No column is left to predict 'price' from"),
        ({"inputs": ["note"]}, r"'note' is text with more than 50 different values, .*leave_out=\[\"note\"\]"),
        ({"inputs": ["photo"]}, r"'photo' is of type image; a column is numbers or text: leave it out"),
        ({"target": "only"}, "The target 'only' has one class, 'flat'"),
        ({"target": "level"}, "The target 'level' is 3 in every row of the train split"),
        ({"target": "since"}, r"The target 'since' is 1\.7e\+09 on average and differs by .*: subtract an offset first"),
        ({"target": "town"}, "The target 'town' is of type text; numbers or classes were expected: import the dataset with"),
        ({"target": "area"}, "The target 'area' misses 16 values"),
    ],
)
def test_columns_that_cannot_be_used_are_named(homes, options, said):
    options = {"inputs": ["rooms"], **options} if "leave_out" not in options else options
    with pytest.raises((Invalid, NotFound), match=said):
        plan(homes, **options)


def test_a_text_without_a_value_in_train_is_named(tmp_path):
    empty = written(tmp_path / "empty", {split: rows(9, town=[None] * 9) for split in tiny_datasets.ROWS})
    with pytest.raises(Invalid, match="'town' has no value in the train split: leave it out"):
        plan(empty, inputs=["town"])


def test_a_train_split_without_rows_is_said(tmp_path):
    none = written(tmp_path / "none", {split: rows(0 if split == "train" else 9) for split in tiny_datasets.ROWS})
    with pytest.raises(Invalid, match="The train split has no rows; import more data"):
        plan(none, inputs=["area"])


def test_the_network_stands_alone_and_may_be_split_on_every_axis(homes):
    made = plan(homes, inputs=["area"], width=16, blocks=4, dropout=0.1)
    alone = load_class(made.source, made.module.name)(**made.module.arguments)
    alone.load_state_dict(made.network.state_dict())
    some = torch.rand(3, 2)
    assert torch.equal(alone.eval()(some), made.network.eval()(some))
    layers = layout(made.split, made.network, Mesh(tensor=2)).tensor
    assert {layers[f"layers.{n}.up"] for n in range(4)} == {"columns"}
    assert len(layout(made.split, made.network, Mesh(pipe=2), stages=2).stages) == 2
    assert len(layout(made.split, made.network, Mesh(shard=2)).blocks) == 4


CONFIG = {"recipe": "tabular", "epochs": 20, "batch_size": 16, "lr": 0.002, "weight_decay": 0.1, "tabular": {"width": 32}}


@pytest.mark.parametrize(("name", "floor"), [("wine", 0.9), ("breast_cancer", 0.92), ("diabetes", 0.3)])
def test_it_learns_more_than_chance_can(tmp_path, name, floor):
    """Of the commonest class there are 40 % in wine and 63 % in breast_cancer; the mean of diabetes has R² 0."""
    outputs = FolderOutputs(tmp_path)
    context = FolderContext(tmp_path / "work")
    context.work.mkdir()
    import_dataset(ImportDatasetConfig(source=f"sklearn:{name}"), {}, outputs, context)
    given = Input("data@1", {}, FolderView(outputs.published["dataset"]["folder"], "d"))
    run(TrainConfig.model_validate(CONFIG), {"dataset": given}, outputs, context)
    folder = outputs.published["model"]["folder"]
    card = ModelCard.load(folder)
    source = Source(folder, card, Dataset.open(given.view.local()))
    report = source.examples("report")
    answers = source.predict(TorchEngine(folder, card), report.inputs)
    right = float((answers == report.wanted).mean()) if card.labels else r2(answers, report.wanted)
    assert right >= floor
