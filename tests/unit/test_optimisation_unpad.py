"""Without padding an encoder answers as it did; what cannot be told from padding is refused, or found out."""

from __future__ import annotations

import itertools
import random
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_datasets
import tiny_language
from onnx import TensorProto, helper, numpy_helper
from test_conversion_encoders import imported
from test_optimisation_steps_encoders import WORDS, optimised
from tiny_models import save

from modelyard.conversion.encoders import Encoder
from modelyard.conversion.onnx import export
from modelyard.conversion.sentences import Sentences
from modelyard.data.datasets import Feature
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderView, Input
from modelyard.optimisation import optimise
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.search.config import SearchConfig
from modelyard.optimisation.search.point import Point
from modelyard.optimisation.search.run import Search
from modelyard.optimisation.unpad import can_unpad, unpad

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
SMALL = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
NAMES = ("input_ids", "attention_mask")
# A graph written by hand: a layer for each token, with ids as its only input, and then what the test says.
LAYER = [("Gather", ["table", "input_ids"], ["x"], {}), ("MatMul", ["x", "w"], ["y"], {})]
MASKED = [
    ("Cast", ["attention_mask"], ["m"], {"to": TensorProto.FLOAT}),
    ("Unsqueeze", ["m", "last"], ["m1"], {}),
    ("Expand", ["m1", "wide"], ["m2"], {}),  # of as many dims as what it masks
    ("Mul", ["y", "m2"], ["z"], {}),
]


def total(name):
    return ("ReduceSum", [name, "places"], ["out"], {"keepdims": 0})


def graph(path, nodes, *, mask=True, out=("out", ["b", 4]), opset=17):
    """`nodes`: (operator, inputs, outputs, attributes)."""
    tables = {
        "table": np.random.default_rng(0).standard_normal((200, 4)),
        "w": np.random.default_rng(1).standard_normal((4, 4)),
    }
    whole = {"last": [2], "places": [1], "wide": [1, 1, 4]}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tables.items()]
    constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in whole.items()]
    made = [helper.make_node(operator, given, gives, **more) for operator, given, gives, more in nodes]
    names = NAMES if mask else NAMES[:1]
    fed = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in names]
    save(
        helper.make_graph(made, "hand", fed, [helper.make_tensor_value_info(out[0], TensorProto.FLOAT, out[1])], constants),
        path,
    )
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)


def run(path, batch):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: batch[given.name] for given in session.get_inputs()})[0]


def texts(chance, rows, longest, *, least=0):
    """Tokens and mask of texts of `least` to `longest` tokens; there may be no padding at all."""
    lengths = chance.integers(least, longest, rows, endpoint=True)
    mask = (np.arange(max(1, lengths.max())) < lengths[:, None]).astype(np.int64)
    return {"input_ids": chance.integers(1, 9, mask.shape), "attention_mask": mask}


def transformer(name):
    """A small network of transformers, with random weights far from nought."""
    import torch
    import transformers

    options = dict(SMALL) | ({"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2} if name == "ModernBert" else {})
    if name == "DistilBert":
        options = {"vocab_size": 60, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    network = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
    for part in network.parameters():
        torch.nn.init.normal_(part, std=0.3)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("Bert", "mean"), ("Bert", "cls"), ("Roberta", "mean"), ("DistilBert", "cls"), ("MPNet", "mean"), ("ModernBert", "mean")],
)
def test_encoders_answer_as_before_and_do_every_layer_by_tokens(tmp_path, name, pooling):
    chance = np.random.default_rng(0)
    said = Sentences(pooling, normalise=True)
    inputs = tuple(TensorCard(name=given, datatype="INT64", shape=(-1, -1)) for given in NAMES)
    output = TensorCard(name="sentence_embedding", datatype="FP32", shape=(-1, -1))
    card = ModelCard(task="feature-extraction", engines=("onnx",), files={}, inputs=inputs, outputs=(output,))
    card = export(Encoder(transformer(name), NAMES, said).eval(), card, tmp_path, texts(chance, 7, 12))
    told = unpad(tmp_path / "model.onnx", tmp_path / "small.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)
    assert told["unpadded"] == told["layers"] >= 8
    before, after = OnnxEngine(tmp_path, card), OnnxEngine(tmp_path, card.changed(files={"onnx": "small.onnx"}))
    for _ in range(30):
        batch = texts(chance, int(chance.integers(1, 9)), int(chance.integers(1, 30)), least=1)
        wanted, given = (engine.forward(batch)["sentence_embedding"] for engine in (before, after))
        assert np.abs(given - wanted).max() < 1e-5
    batch["attention_mask"][0] = 0  # what no tokenizer makes, and the network itself answers by how wide the batch is
    alone = {given: array[:1, :1] for given, array in batch.items()}
    wanted, given = (after.forward(rows)["sentence_embedding"][0] for rows in (alone, batch))
    assert np.abs(given - wanted).max() < 1e-5


@pytest.mark.parametrize(
    "after", [[], [("MatMul", ["z", "w"], ["z2"], {})], [("Relu", ["z"], ["z1"], {}), ("Gelu", ["z1"], ["z2"], {})]]
)
def test_what_a_mask_makes_nought_stays_so(tmp_path, after):
    """Between the layers and the sum over places there is no trace of padding but the mask's noughts."""
    graph(tmp_path / "model.onnx", [*LAYER, *MASKED, *after, total("z2" if after else "z")], opset=20)
    told = unpad(tmp_path / "model.onnx", tmp_path / "small.onnx")
    assert told == {"unpadded": 1, "layers": 1 + sum(operator == "MatMul" for operator, *_ in after)}
    chance = np.random.default_rng(0)
    for _ in range(50):
        batch = texts(chance, int(chance.integers(1, 6)), int(chance.integers(1, 10)))
        assert np.abs(run(tmp_path / "model.onnx", batch) - run(tmp_path / "small.onnx", batch)).max() < 1e-5


@pytest.mark.parametrize(
    ("nodes", "more", "said"),
    [
        ([*LAYER, total("y")], {"mask": False}, "takes no 'attention_mask'.*input_ids"),
        (LAYER, {"out": ("y", ["b", "t", 4])}, "gives 'y' for each token"),
        ([LAYER[0], total("x")], {}, "No layer of this graph takes tokens one by one"),
        ([*LAYER, total("y")], {"opset": 10}, "opset 10; 11 is the least"),
    ],
)
def test_other_graphs_are_refused(tmp_path, nodes, more, said):
    graph(tmp_path / "model.onnx", nodes, **more)
    with pytest.raises(Invalid, match=said):
        unpad(tmp_path / "model.onnx", tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_layers_are_of_tokens_alone(tmp_path):
    graph(tmp_path / "model.onnx", [*LAYER, *MASKED, total("z")])
    unpad(tmp_path / "model.onnx", tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx")
    model.graph.output.append(helper.make_tensor_value_info("unpad/tokens of y", TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = texts(np.random.default_rng(1), 20, 9, least=1)
    assert session.run(["unpad/tokens of y"], batch)[0].shape == (batch["attention_mask"].sum(), 4)
    assert can_unpad(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["sum", "index", "mask", "flat", "ones", "kept"])
def test_tensors_may_have_any_name(tmp_path, name):
    layers = [(operator, given, [name if made == ["y"] else made[0]], more) for operator, given, made, more in LAYER]
    masked = [(operator, [name if one == "y" else one for one in given], made, more) for operator, given, made, more in MASKED]
    graph(tmp_path / "model.onnx", [*layers, *masked, total("z")])
    unpad(tmp_path / "model.onnx", tmp_path / "small.onnx")
    batch = texts(np.random.default_rng(1), 6, 9)
    assert np.abs(run(tmp_path / "model.onnx", batch) - run(tmp_path / "small.onnx", batch)).max() < 1e-5


def test_a_graph_with_branches_is_refused(tmp_path):
    graph(tmp_path / "model.onnx", [*LAYER, *MASKED, total("z")])
    model = onnx.load(tmp_path / "model.onnx")
    there = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["y"], ["c"])], "branch", [], [there])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["unseen"], then_branch=branch, else_branch=branch))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(Invalid, match="branches or loops"):
        unpad(tmp_path / "model.onnx", tmp_path / "small.onnx")
    assert not can_unpad(tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    tiny_language.bert(root / "bert", modules=("Pooling", "Normalize"), layers=2)
    chance, splits = random.Random(0), {}
    for name, rows in (("train", 60), ("calibrate", 40), ("select", 80), ("report", 80)):
        splits[name] = {"text": [" ".join(chance.choices(WORDS, k=chance.randint(3, 12))) for _ in range(rows)]}
    tiny_datasets.write(root / "data", {"text": Feature(type="text")}, splits, None)
    return {
        "model": Input("bert@1", {}, FolderView(imported(root / "bert", root)["folder"], "aa")),
        "dataset": Input("texts@1", {}, FolderView(root / "data", "bb")),
    }


def test_alone_it_is_the_same_model(inputs, tmp_path):
    outputs, _ = optimised(inputs, tmp_path, "unpad")
    (made,) = outputs.published.values()
    metadata = made["metadata"]
    assert (metadata["variant"], metadata["select"]["drop"], metadata["report"]["chosen"]["value"]) == ("unpad", 0.0, 1.0)
    assert metadata["steps"] == [{"step": "unpad", "unpadded": 12, "layers": 12}]
    assert metadata["verification"]["max_rel"] < 1e-4 == metadata["verification"]["tolerance"]


def test_eight_bits_and_a_student_go_without_padding_too(inputs, tmp_path):
    steps = ("distil:epochs=1,layers=1", "unpad", "quantize:dynamic-int8,sensitive=1")
    outputs, _ = optimised(inputs, tmp_path, *steps)
    (made,) = outputs.published.values()
    metadata, graph = made["metadata"], onnx.load(made["folder"] / "model.onnx").graph
    assert metadata["variant"] == "distil1+unpad+dynamic-int8"
    assert [told["step"] for told in metadata["steps"]] == list(steps)
    assert metadata["steps"][1] == {"step": "unpad", "unpadded": 6, "layers": 6}
    assert len(metadata["steps"][2]["float_layers"]) == 1
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulInteger") == 5
    assert "CumSum" in operators
    card = ModelCard.load(made["folder"])
    source = optimise.read(inputs).source
    rows = source.examples("report").inputs
    alone = {name: array[:1] for name, array in source.cut({name: array[:1] for name, array in rows.items()}).items()}
    engine = OnnxEngine(made["folder"], card)
    apart = np.abs(engine.forward(alone)["sentence_embedding"] - engine.forward(rows)["sentence_embedding"][0])
    assert apart.max() < 0.1  # eight bits are of all rows' range


@pytest.mark.parametrize("even", [True, False])
def test_what_looks_at_padding_is_found_out(inputs, tmp_path, even):
    """A graph that takes the mean of all places, padding too, whatever it may be worth; also by texts of one length."""
    encoder, leaky = inputs["model"].view.local(), tmp_path / "leaky"
    leaky.mkdir()
    shutil.copy(encoder / "tokenizer.json", leaky)
    mean = ("ReduceMean", ["y"], ["sentence_embedding"], {"axes": [1], "keepdims": 0})
    graph(leaky / "model.onnx", [*LAYER, mean], out=("sentence_embedding", ["b", 4]))
    own = ModelCard.load(encoder)
    changed = {
        "inputs": tuple(spec for spec in own.inputs if spec.name in NAMES),
        "outputs": (TensorCard(name="sentence_embedding", datatype="FP32", shape=(-1, 4)),),
        "transform": {**(own.transform or {}), "inputs": list(NAMES)},
    }
    own.changed(engines=("onnx",), files={"onnx": "model.onnx", "tokenizer": "tokenizer.json"}, **changed).save(leaky)
    given = {**inputs}
    if even:
        rows = [" ".join(pair) for pair in itertools.permutations(sorted(set(WORDS) - {"."}), 2)]
        splits = {"train": rows[:20], "calibrate": rows[20:40], "select": rows[40:70], "report": rows[70:100]}
        texts_of = {name: {"text": some} for name, some in splits.items()}
        tiny_datasets.write(tmp_path / "even", {"text": Feature(type="text")}, texts_of, None)
        given["dataset"] = Input("even@1", {}, FolderView(tmp_path / "even", "cc"))
    with pytest.raises(Invalid, match=r"unpad: .*is not the same: output 'sentence_embedding' differs"):
        optimised({**given, "model": Input("leaky@1", {}, FolderView(leaky, "aa"))}, tmp_path, "unpad")


def test_a_search_tries_both_and_goes_on_with_what_an_earlier_release_began(inputs, tmp_path):
    search = Search(SearchConfig(), inputs, FolderContext(tmp_path))
    assert search.space["unpad"].values == (False, True)
    told = {tuple(step.step for step in Point(**point).steps()) for point in search.points}
    assert told == {(), ("unpad",), ("quantize",), ("unpad", "quantize")}
    earlier = SimpleNamespace(parameters={"quantize": "dynamic-int8", "calibration": "minmax", "sensitive": "auto"}, state="x")
    search.recall(earlier)
    assert search._cost(earlier.parameters) == 0
    left = [search.proposer.suggest() for _ in range(len(search.points) - 1)]
    assert {"unpad": False, **earlier.parameters} not in left
    assert search.proposer.suggest() is None


@pytest.mark.parametrize("after", ["finetune", "unpad", "distil:layers=1"])
def test_only_eight_bits_may_follow(after):
    with pytest.raises(ValueError, match="only quantize may follow"):
        OptimiseConfig(steps=("unpad", after))
