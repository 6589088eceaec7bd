from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_language
from test_conversion_encoders import imported
from tiny_datasets import COLUMNS, images, table, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from modelyard.data.datasets import Feature
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid
from modelyard.optimisation.embeddings import alike
from modelyard.optimisation.evaluate import score
from modelyard.optimisation.examples import Source
from modelyard.testing import FakeEngine

IMAGE = {"name": "image", "height": 4, "width": 4, "channels": 1, "labels": ["light", "dark"], "input": "x", "output": "y"}


def card(width: int | None, outputs: int, transform: dict | None = None, labels: tuple[str, ...] | None = None) -> ModelCard:
    return ModelCard(
        task="feature-extraction",
        engines=("fake",),
        files={},
        inputs=(TensorCard(name="x", datatype="FP32", shape=None if width is None else (-1, width)),),
        outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, outputs)),),
        transform=transform,
        labels=labels,
    )


class Answers(FakeEngine):
    """Answers `of(batch)` as output y."""

    def __init__(self, of) -> None:
        super().__init__()
        self.of = of

    def forward(self, batch):
        super().forward(batch)
        return {"y": np.asarray(self.of(batch["x"]), np.float32)}


@pytest.fixture
def numbers(tmp_path: Path):
    return table(tmp_path / "data", Feature(type="float"), lambda x: x.sum(axis=1))


def test_columns_become_one_matrix_and_the_target_a_number(numbers) -> None:
    source = Source(numbers.folder, card(10, 1), numbers)
    found = source.examples("select")
    assert source.metric == "r2"
    assert (found.inputs["x"].shape, found.inputs["x"].dtype) == ((100, 10), np.float32)
    np.testing.assert_allclose(found.wanted, found.inputs["x"].sum(axis=1), rtol=1e-4, atol=1e-5)
    engine = Answers(lambda x: x.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(source.predict(engine, found.inputs), found.wanted, rtol=1e-4, atol=1e-5)
    assert engine.batches == [64, 36]


class Embeds(Answers):
    """Each text as the counts of its tokens, turned a little by `noise`; the widths of the batches it was given."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__(lambda x: x)
        self.noise, self.widths = noise, []

    def forward(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        self.widths.append(ids.shape[1])
        counts = np.stack([((ids == token) & (mask == 1)).sum(axis=1) for token in range(5)], axis=1).astype(np.float32)
        return {"sentence_embedding": counts + self.noise * np.sin(7 * counts + np.arange(5, dtype=np.float32))}


def letters(folder: Path) -> None:
    """A tokenizer of five words."""
    words = Tokenizer(WordLevel({letter: place for place, letter in enumerate("abcde")}, unk_token="a"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))


@pytest.fixture
def texts(tmp_path: Path) -> Source:
    letters(tmp_path)
    random = np.random.default_rng(0)
    rows = [" ".join(random.choice(list("abcde"), size)) for size in random.integers(1, 40, 100)]
    data = write(tmp_path / "data", {"said": Feature(type="text")}, {"select": {"said": rows}}, None)
    return Source(tmp_path, card(10, 1, {"name": "text", "length": 64}), data)


def test_of_texts_it_counts_how_alike_the_original_finds_them(texts: Source) -> None:
    original = Embeds()
    select = texts.examples("select")
    found = texts.truth(select, lambda: texts.predict(original, select.inputs))
    assert texts.metric == "spearman"
    assert (found.wanted == texts.predict(original, found.inputs)).all()
    assert len(set(found.wanted.tolist())) > 90
    assert score(texts.predict(Embeds(0.1), found.inputs), found.wanted, texts.metric).value > 0.95
    assert score(texts.predict(Embeds(3.0), found.inputs), found.wanted, texts.metric).value < 0.8
    answers, wanted = texts.run(original, "select")
    np.testing.assert_allclose(answers.predicted, found.wanted, atol=1e-6)
    assert wanted is answers.predicted


def test_texts_go_by_length_in_batches_as_long_as_their_longest(texts: Source) -> None:
    engine, inputs = Embeds(), texts.examples("select").inputs
    whole = inputs["attention_mask"].sum(axis=1)
    texts.predict(engine, inputs)
    texts.run(engine, "select")
    assert engine.widths == 2 * [sorted(whole)[63], whole.max()]
    one_by_one = np.concatenate(
        [engine.forward({k: v[i : i + 1] for k, v in inputs.items()})["sentence_embedding"] for i in range(100)]
    )
    np.testing.assert_allclose(texts.predict(engine, inputs), alike(one_by_one), atol=1e-6)
    typical = texts.typical(inputs, 32)
    lengths = typical["attention_mask"].sum(axis=1)
    assert sorted(lengths) == sorted(whole[:32])
    assert lengths[0] == sorted(whole[:32])[16]
    first = {name: array[:1] for name, array in typical.items()}
    assert texts.cut(first)["input_ids"].shape == (1, lengths[0])


def test_embeddings_need_a_column_of_texts(numbers, tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"the": 0}, unk_token="the"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Invalid, match="The model takes texts; the dataset has"):
        Source(tmp_path, card(10, 1, {"name": "text", "length": 8}), numbers)


def test_fewer_rows_are_drawn_by_seed_in_order(numbers) -> None:
    source = Source(numbers.folder, card(10, 1), numbers)
    whole = source.examples("select").wanted.tolist()
    some = source.examples("select", 10, seed=1).wanted.tolist()
    assert len(some) == 10
    assert [whole.index(value) for value in some] == sorted(whole.index(value) for value in some)
    assert some == source.examples("select", 10, seed=1).wanted.tolist()
    assert some != source.examples("select", 10, seed=2).wanted.tolist()
    assert source.examples("select", 1000).wanted.tolist() == whole


def test_what_training_noted_decides_columns_and_target(numbers, tmp_path: Path) -> None:
    config = {"recipe": "module", "module": {"name": "M", "inputs": ["c3", "c1"], "target": "c0"}}
    (tmp_path / "training.json").write_text(json.dumps({"config": config}))
    found = Source(tmp_path, card(2, 1), numbers).examples("report")
    np.testing.assert_array_equal(found.inputs["x"][:, 0], numbers.column("report", "c3").astype(np.float32))
    np.testing.assert_array_equal(found.inputs["x"][:, 1], numbers.column("report", "c1").astype(np.float32))
    np.testing.assert_array_equal(found.wanted, numbers.column("report", "c0"))


def test_a_tables_target_is_the_one_it_was_trained_on_and_its_columns_are_the_transforms(numbers, tmp_path: Path) -> None:
    config = {"recipe": "tabular", "tabular": {"inputs": ["c3", "c1"], "leave_out": ["c1"], "target": "c0"}}
    (tmp_path / "training.json").write_text(json.dumps({"config": config}))
    transform = {"name": "columns", "columns": [{"name": "c3"}]}
    found = Source(tmp_path, card(1, 1, transform), numbers).examples("report")
    np.testing.assert_array_equal(found.inputs["x"][:, 0], numbers.column("report", "c3").astype(np.float32))
    np.testing.assert_array_equal(found.wanted, numbers.column("report", "c0"))


def test_labels_are_compared_by_name_where_the_model_orders_them_otherwise(tmp_path: Path) -> None:
    data = table(tmp_path / "data", Feature(type="label", names=("no", "yes")), lambda x: (x[:, 0] > 0).astype(int).tolist())
    engine = Answers(lambda x: np.stack([x[:, 0], -x[:, 0]], axis=1))  # position 0 where c0 > 0
    for labels, right in ((("yes", "no"), 1.0), (("no", "yes"), 0.0), (None, 0.0), (("maybe", "never"), 0.0)):
        source = Source(tmp_path, card(10, 2, labels=labels), data)
        found = source.examples("select")
        assert source.metric == "accuracy"
        assert np.mean(source.predict(engine, found.inputs) == found.wanted) == right


def test_images_go_through_the_versions_transform(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    source = Source(tmp_path, card(None, 2, IMAGE), data)
    found = source.examples("select")
    assert found.inputs["x"].shape == (100, 1, 4, 4)
    engine = Answers(lambda x: np.stack([x.mean(axis=(1, 2, 3)), np.full(len(x), 0.5)], axis=1))
    assert (source.predict(engine, found.inputs) == found.wanted).all()


def test_named_columns_go_through_the_versions_transform(numbers, tmp_path: Path) -> None:
    transform = {"name": "columns", "columns": [{"name": "c2", "mean": 1.0}], "input": "x", "output": "y"}
    source = Source(tmp_path, card(1, 1, transform), numbers)
    found = source.examples("select")
    np.testing.assert_allclose(found.inputs["x"][:, 0], numbers.column("select", "c2") - 1, rtol=1e-5, atol=1e-6)
    assert source.predict(Answers(lambda x: x), found.inputs).shape == (100,)


def test_data_that_does_not_fit_the_model_is_refused(numbers, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"takes x\[-1, 3\]; the dataset gives one matrix of 10 columns"):
        Source(tmp_path, card(3, 1), numbers).examples("select")
    with pytest.raises(Invalid, match="takes an image; the dataset has"):
        Source(tmp_path, card(None, 2, IMAGE), numbers)
    with pytest.raises(Invalid, match=r"takes columns of numbers"):
        Source(tmp_path, card(3, 1), images(tmp_path / "images"))
    source = Source(tmp_path, card(10, 2), numbers)
    with pytest.raises(Invalid, match=r"answers \[2\] numbers a row; 'target' is one"):
        source.predict(Answers(lambda x: x[:, :2]), source.examples("select").inputs)


def test_a_dataset_without_target_or_rows_is_refused(tmp_path: Path) -> None:
    features = {name: Feature(type="float") for name in COLUMNS}
    aimless = write(tmp_path / "aimless", features, {"select": {name: [1.0] for name in COLUMNS}}, None)
    with pytest.raises(Invalid, match="no target"):
        Source(tmp_path, card(10, 1), aimless)
    empty = write(tmp_path / "empty", features, {"select": {name: [] for name in COLUMNS}}, "c0")
    with pytest.raises(Invalid, match="'select' of the dataset is empty"):
        Source(tmp_path, card(9, 1), empty).examples("select")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_belongs_together_is_found_by_its_embeddings(tmp_path: Path) -> None:
    """Every other text belongs to itself in capitals, which the tokenizer does not see, the rest to one that says less; two
    belong to the same."""
    model = tiny_language.bert(tmp_path / "bert", modules=("Pooling", "Normalize"))
    version = imported(tmp_path / "bert", tmp_path)["folder"]
    asked = tiny_language.TEXTS[:40]
    theirs = [text.upper() if row % 2 else text[4 : 14 + row] for row, text in enumerate(asked)]
    theirs[5] = theirs[7]
    few = {"asked": ["dog"], "theirs": ["cat"]}
    splits = {"calibrate": few, "select": few, "report": {"asked": asked, "theirs": theirs}}
    data = write(tmp_path / "data", dict.fromkeys(few, Feature(type="text")), splits, "theirs")
    source = Source(version, ModelCard.load(version), data)
    assert (source.metric, source.features) == ("spearman", ("asked",))
    assert source.judges("recall@10") == ("recall@10", "mrr", "recall@1")
    answers, wanted = source.found(OnnxEngine(version, ModelCard.load(version)), "report", "mrr")
    different = sorted(set(theirs))
    one, two = (tiny_language.embeddings(tmp_path / "bert", model, texts, normalised=True) for texts in (asked, different))
    near, own = one @ two.T, [different.index(text) for text in theirs]
    places = (near >= near[np.arange(40), own][:, None]).sum(axis=1)
    assert wanted.tolist() == theirs
    assert (1 / answers.predicted).round().astype(int).tolist() == places.tolist()
    assert (places[1::2] == 1).sum() >= 19
    assert places.max() > 2

    alone = write(tmp_path / "alone", {"asked": Feature(type="text")}, {"report": {"asked": asked}}, None)
    with pytest.raises(Invalid, match=r"judged by spearman, not by mrr .*belong together: with a target of texts"):
        Source(version, ModelCard.load(version), alone).judges("mrr")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_embeddings_that_are_all_the_same_find_nothing(tmp_path: Path) -> None:
    tiny_language.bert(tmp_path / "bert", modules=("Pooling",))
    version = imported(tmp_path / "bert", tmp_path)["folder"]
    rows = {"asked": ["dog"] * 9, "theirs": [f"{colour} cat" for colour in ("red", "blue", "green")] * 3}
    data = write(tmp_path / "data", dict.fromkeys(rows, Feature(type="text")), {"report": rows}, "theirs")

    class Same(OnnxEngine):
        def forward(self, batch):
            return {name: np.ones_like(array) for name, array in super().forward(batch).items()}

    source, same = Source(version, ModelCard.load(version), data), Same(version, ModelCard.load(version))
    found, _ = source.found(same, "report", "mrr")
    with pytest.raises(Invalid, match="recall@10 is 1 of any model: among 3 texts each is one of the first 10"):
        source.found(same, "report", "recall@10")
    assert (1 / found.predicted).tolist() == [3.0] * 9  # the last of three


def test_a_text_that_several_rows_share_is_searched_once(tmp_path: Path) -> None:
    """Of ten rows five belong to either of two texts; what half of those ask is nearer to the other, which is one that comes
    before theirs, not five."""
    letters(tmp_path)
    rows = {"asked": ["a", "a b", "a a", "c", "c d", "c", "c c d", "c d", "a", "b"], "theirs": ["a b"] * 5 + ["c d"] * 5}
    data = write(tmp_path / "data", dict.fromkeys(rows, Feature(type="text")), {"report": rows}, "theirs")
    source = Source(tmp_path, card(10, 1, {"name": "text", "length": 64}), data)
    found, wanted = source.found(Embeds(), "report", "mrr")
    assert (1 / found.predicted).tolist() == [1, 1, 1, 2, 2, 1, 1, 1, 2, 2]
    assert wanted.tolist() == rows["theirs"]
