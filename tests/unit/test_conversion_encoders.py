"""An encoder of texts is imported as a graph that answers as transformers does, pooled as its folder says."""

import json
import shutil
import sys

import numpy as np
import pytest
import tiny_language

from modelyard.conversion import encoders
from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.importing import run
from modelyard.data.transforms import build
from modelyard.engines.base import ModelCard
from modelyard.engines.huggingface import open_tokenizer
from modelyard.engines.onnx import OnnxEngine
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
TEXTS = ["the cat of rome is red.", "dog", "", "a king " * 30, "the bird of oslo is grey. the dog of paris is white."]


def imported(folder, tmp_path):
    (tmp_path / "work").mkdir()
    outputs = FolderOutputs(tmp_path / "out")
    files = {"files": Input("artefact:f", {}, FolderView(folder, "f"))}
    run(ImportModelConfig(), files, outputs, FolderContext(tmp_path / "work"))
    return outputs.published["model"]


def embed(folder, texts):
    card = ModelCard.load(folder)
    transform, engine = build(card.transform, folder), OnnxEngine(folder, card)
    rows = np.array([text.encode() for text in texts], object)
    return transform.after(engine.forward(transform.before({"text": rows})))["embedding"]


@pytest.mark.parametrize(
    ("modules", "pooling", "normalised", "length"),
    [
        (("Pooling", "Normalize"), "mean_tokens", True, 24),
        (("Pooling",), "cls_token", False, 24),
        ((), "mean_tokens", False, 64),
    ],
)
def test_it_answers_as_transformers_does(tmp_path, modules, pooling, normalised, length):
    model = tiny_language.bert(tmp_path / "bert", modules=modules, pooling=pooling)
    version = imported(tmp_path / "bert", tmp_path)
    wanted = tiny_language.embeddings(tmp_path / "bert", model, TEXTS, pooling=pooling, normalised=normalised, length=length)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1  # so that the answers could be told apart
    assert np.abs(embed(version["folder"], TEXTS) - wanted).max() < 1e-5
    for row, text in enumerate(TEXTS):
        assert np.abs(embed(version["folder"], [text]) - wanted[row]).max() < 1e-5
    card = ModelCard.load(version["folder"])
    assert (card.task, card.engines) == ("feature-extraction", ("onnx", "transformers"))
    assert card.transform is not None
    assert (card.transform["name"], card.transform["length"]) == ("text", length)
    assert version["metadata"]["verification"]["ok"]
    kept = {path.relative_to(version["folder"]).as_posix() for path in version["folder"].rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "model.onnx"} <= kept
    assert ({"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= kept) == bool(modules)
    said = (version["folder"] / "README.md").read_text()
    assert ("as modules.json says" if modules else "not normalised, for there is no modules.json") in said


def nothing_serves_it(version, why):
    card = ModelCard.load(version["folder"])
    assert (card.engines, card.transform) == (("transformers",), None)
    assert not (version["folder"] / "model.onnx").exists()
    said = (version["folder"] / "README.md").read_text()
    assert "nothing serves it; it is a base for fine-tuning" in said
    assert why in said


def test_steps_that_are_not_known_leave_a_base(tmp_path):
    tiny_language.bert(tmp_path / "bert", modules=("Pooling", "Dense"))
    nothing_serves_it(imported(tmp_path / "bert", tmp_path), "names Transformer, Pooling, Dense")


def test_a_missing_extra_leaves_a_base_and_says_which(tmp_path, monkeypatch):
    tiny_language.bert(tmp_path / "bert")
    monkeypatch.delitem(sys.modules, "modelyard.conversion.encoders")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    nothing_serves_it(imported(tmp_path / "bert", tmp_path), "needs the library 'onnxscript', which is not installed")


def test_a_tokenizer_that_reads_otherwise_is_not_served(tmp_path, monkeypatch):
    """As where the folder's settings change what its tokenizer.json says."""
    tiny_language.bert(tmp_path / "bert")
    real = encoders.open_tokenizer

    def other(folder):
        made = real(folder)
        made.backend_tokenizer.normalizer = None
        return made

    monkeypatch.setattr(encoders, "open_tokenizer", other)
    nothing_serves_it(imported(tmp_path / "bert", tmp_path), "otherwise than transformers does")


def test_a_graph_that_answers_otherwise_is_not_served(tmp_path, monkeypatch):
    """Here because it is another model's."""
    (tmp_path / "other").mkdir()
    tiny_language.bert(tmp_path / "bert", seed=1)
    tiny_language.bert(tmp_path / "other" / "bert", seed=2)
    card = ModelCard.load(imported(tmp_path / "other" / "bert", tmp_path / "other")["folder"])

    def export(module, stated, out, samples):
        shutil.copyfile(tmp_path / "other" / "out" / "model" / "model.onnx", out / "model.onnx")
        return card

    monkeypatch.setattr(encoders, "export", export)
    nothing_serves_it(imported(tmp_path / "bert", tmp_path), "is not the same: output 'sentence_embedding' differs")


def test_a_model_of_images_is_a_base_as_before(tmp_path):
    from transformers import ViTConfig, ViTModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **small)).save_pretrained(tmp_path / "vit")
    nothing_serves_it(imported(tmp_path / "vit", tmp_path), "ViTModel is no encoder of texts")


def test_the_tokenizer_is_written_where_it_lies_in_another_form(tmp_path):
    tiny_language.bert(tmp_path / "bert")
    (tmp_path / "made").mkdir()
    vocabulary = json.loads((tmp_path / "bert" / "tokenizer.json").read_text())["model"]["vocab"]
    wanted = open_tokenizer(tmp_path / "bert")(TEXTS)["input_ids"]
    (tmp_path / "bert" / "tokenizer.json").unlink()
    (tmp_path / "bert" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    folder = encoders._backend(open_tokenizer(tmp_path / "bert"), tmp_path / "bert", tmp_path / "made")
    assert folder == tmp_path / "made"
    made = build({"name": "text", "length": 512}, folder).before({"text": np.array(TEXTS, object)})
    assert [row[there == 1].tolist() for row, there in zip(*made.values(), strict=True)] == wanted
