import io

import numpy as np
import pytest
import torch
from PIL import Image

from modelyard.data import transforms
from modelyard.data.bundled import png
from modelyard.data.datasets import Dataset, Feature
from modelyard.data.writing import Sample, Source, write
from modelyard.engines.torch import load_class
from modelyard.errors import Invalid, NotFound
from modelyard.training.checks import check_answer, check_data
from modelyard.training.config import TrainConfig
from modelyard.training.recipes import RECIPES
from modelyard.training.recipes.image_classifier import moved

draw = np.random.default_rng(0)


def dataset(folder, features, rows, target=None):
    folder.mkdir()
    samples = [Sample(str(n).encode(), row, f"row {n}") for n, row in enumerate(rows)]
    write(Source(features, target, None, len(samples), samples, {"from": "test"}), folder, lambda done: None)
    return Dataset.open(folder)


def photo(width, height):
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    features = {"image": Feature(type="image"), "label": Feature(type="label", names=("cat", "dog"))}
    rows = [
        {"image": photo(300 + n % 5, 150) if n % 2 else png(np.full((9, 9), n, np.uint8)), "label": n % 2} for n in range(60)
    ]
    return dataset(tmp_path_factory.mktemp("photos") / "d", features, rows, "label")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    features = {
        "age": Feature(type="float"),
        "rooms": Feature(type="int"),
        "town": Feature(type="text"),
        "pays": Feature(type="float"),
        "kind": Feature(type="label", names=("a", "b", "c")),
    }
    rows = [
        {
            "age": None if n % 10 == 0 else float(n),
            "rooms": n % 5,
            "town": ("Bern", "Zug")[n % 2],
            "pays": n * 1.5,
            "kind": n % 2,
        }
        for n in range(80)
    ]
    return dataset(tmp_path_factory.mktemp("people") / "d", features, rows, "pays")


NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, wide=4, out=1):
        super().__init__()
        self.layer = nn.Linear(wide, out)
    def forward(self, table):
        return self.layer(table)
class Two(Net):
    def forward(self, left, right):
        return left
class Pixels(Net):
    def forward(self, picture):
        return self.layer(picture.mean(dim=(2, 3)))
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def plan(dataset, code=None, **module):
    if not module:
        return RECIPES.get("image-classifier")(TrainConfig(), dataset, code)
    config = TrainConfig(recipe="module", module={"file": "net.py", "name": "Net", **module})
    return RECIPES.get("module")(config, dataset, code)


def test_training_and_serving_make_the_same_of_the_same_bytes(photos, people, code):
    """The one promise transforms are there for, for every recipe and kind of input."""
    image = plan(photos)
    data = {"image": photos.column("train", "image")}
    assert np.array_equal(image.before(data), transforms.build(image.transform.config).before(data)["pixels"])

    own = plan(photos, code, name="Pixels", inputs=["image"], loss="cross-entropy", arguments={"wide": 3, "out": 2})
    assert np.array_equal(own.before(data), transforms.build(own.transform.config).before(data)["picture"])

    table = plan(people, code, inputs=["age", "rooms", "town"], transform="columns")
    rows = people.columns("train", ["age", "rooms", "town"])
    public = {**rows, "town": np.array([town.encode() for town in rows["town"]], object)}
    assert np.array_equal(table.before(rows), transforms.build(table.transform.config).before(public)["table"])
    assert abs(table.before(rows)[:, :2].mean()) < 1e-6


def test_images_take_the_largest_size_of_the_train_split_within_a_bound(photos):
    config = plan(photos).transform.config
    assert (config["width"], config["height"], config["channels"]) == (224, pytest.approx(224 * 150 / 304, abs=1), 3)


def test_the_recipes_network_stands_alone(photos):
    made = plan(photos)
    alone = load_class(made.source, made.module.name)(**made.module.arguments)
    alone.load_state_dict(made.network.state_dict())
    made.network.eval()
    alone.eval()
    pixels = torch.rand(3, 3, 20, 30)
    assert torch.equal(made.network(pixels), alone(pixels))


@pytest.mark.parametrize(("most", "flip"), [(2, False), (0, True), (2, True)])
def test_moves_are_the_same_however_many_ranks_share_a_batch(most, flip):
    pixels = draw.normal(size=(10, 1, 8, 8)).astype(np.float32)
    augment = moved(most, flip=flip)
    whole = augment(pixels, np.random.default_rng(3), 0, 10)
    parts = [augment(pixels[a:b], np.random.default_rng(3), a, 10) for a, b in ((0, 4), (4, 10))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, pixels)
    assert set(whole.ravel()) <= set(pixels.ravel())


def test_a_flip_mirrors_some_images_and_leaves_the_others():
    pixels = draw.normal(size=(40, 3, 4, 5)).astype(np.float32)
    found = moved(0, flip=True)(pixels, np.random.default_rng(3), 0, 40)
    mirrored = [np.array_equal(after, before[:, :, ::-1]) for after, before in zip(found, pixels, strict=True)]
    left = [np.array_equal(after, before) for after, before in zip(found, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, left, strict=True))
    assert 10 < sum(mirrored) < 30


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ({"name": "Two", "inputs": ["rooms"]}, r"forward of Two takes \(left, right\)"),
        ({"inputs": ["age"]}, "Column 'age' misses 8 values; fill them, or use transform 'columns'"),
        ({"inputs": ["town"]}, r"\{'town': 'text'\} are not: use the transform 'columns'"),
        ({"inputs": ["rooms"], "target": "kind"}, "'kind' is of type label: use cross-entropy"),
        ({"inputs": ["rooms"], "loss": "cross-entropy"}, "'pays' is of type float: use mse"),
        ({"inputs": ["rooms"], "target": "wage"}, "No feature 'wage'"),
        ({"inputs": ["kind"], "transform": "columns"}, r"'kind' \(label\) cannot be an input column"),
    ],
)
def test_a_module_that_does_not_fit_the_data(people, code, module, said):
    with pytest.raises((Invalid, NotFound), match=said):
        plan(people, code, **module)


def test_the_code_must_be_given(people, code):
    with pytest.raises(Invalid, match="needs your code"):
        plan(people, None, inputs=["rooms"])
    with pytest.raises(NotFound, match=r"No 'nets\.py' in the code that was given; there is net\.py"):
        plan(people, code, inputs=["rooms"], file="nets.py")
    with pytest.raises(Invalid, match="image-classifier' needs one image feature and labels"):
        plan(people)


def test_an_unknown_recipe_says_what_there_is():
    with pytest.raises(NotFound, match=r"No recipe 'image-clasifier'\. Did you mean 'image-classifier'"):
        RECIPES.get("image-clasifier")


def test_a_class_without_samples_is_said(people, code):
    made = plan(people, code, inputs=["rooms"], target="kind", loss="cross-entropy", arguments={"wide": 1, "out": 3})
    with pytest.raises(Invalid, match=r"The train split has no sample of class 'c' \(of 3 classes\)"):
        check_data(made, people, world=1, batch=8)


@pytest.mark.parametrize(("split", "other"), [("train", "select"), ("select", "train")])
def test_a_class_that_one_split_alone_lacks_is_said(tmp_path, code, split, other):
    (tmp_path / "d").mkdir()
    features = {"rooms": Feature(type="int"), "kind": Feature(type="label", names=("a", "b", "c"))}
    samples = [
        Sample(f"{name} {n}".encode(), {"rooms": n, "kind": n % (2 if name == split else 3)}, f"row {n}", name)
        for name in ("train", "calibrate", "select", "report")
        for n in range(30)
    ]
    own = frozenset({"calibrate", "select", "report"})
    write(Source(features, "kind", None, len(samples), samples, {"from": "test"}, own), tmp_path / "d", lambda done: None)
    found = Dataset.open(tmp_path / "d")
    counts = {name: said["counts"] for name, said in found.features["kind"].statistics.items()}
    assert (counts[split], counts[other]) == ([15, 15, 0], [10, 10, 10])
    made = plan(found, code, inputs=["rooms"], loss="cross-entropy", arguments={"wide": 1, "out": 3})
    with pytest.raises(Invalid, match=rf"The {split} split has no sample of class 'c' \(of 3 classes\)"):
        check_data(made, found, world=1, batch=8)


def test_a_gang_larger_than_the_data_is_said(people, code):
    with pytest.raises(Invalid, match="use fewer ranks"):
        check_data(plan(people, code, inputs=["rooms"], arguments={"wide": 1}), people, world=1000, batch=8)


def test_an_empty_split_is_said(tmp_path, code):
    small = dataset(tmp_path / "d", {"a": Feature(type="float"), "y": Feature(type="float")}, [{"a": 1.0, "y": 2.0}], "y")
    with pytest.raises(Invalid, match=r"The (train|select) split has no rows; import more data"):
        check_data(plan(small, code, inputs=["a"], arguments={"wide": 1}), small, world=1, batch=8)


def test_an_answer_of_another_shape_is_said(people, code):
    made = plan(people, code, inputs=["rooms"])
    inputs = np.zeros((2, 1), np.float32)
    check_answer(made, torch.zeros(2, 1), inputs)
    check_answer(made, torch.zeros(2), inputs)
    with pytest.raises(Invalid, match=r"forward of Net returned shape \[2, 3\] for input \[2, 1\]; expected \[2, 1\]"):
        check_answer(made, torch.zeros(2, 3), inputs)
    with pytest.raises(Invalid, match="returned tuple; one tensor was expected"):
        check_answer(made, (torch.zeros(2, 1),), inputs)
