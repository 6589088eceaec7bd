"""A small BERT learns classes of texts and a small ViT classes of images, whole or by LoRA."""

import json
import warnings

import pytest
import tiny_datasets
import tiny_language
import torch

from modelyard.data.datasets import Feature
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.training.config import TrainConfig
from modelyard.training.loop import run
from modelyard.training.recipes.transformers import transformers

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def card(folder, task, name, **served):
    given = (TensorCard(name="logits", datatype="FP32"),)
    taken = (TensorCard(name=name, datatype="FP32"),)
    plain = {"engines": ("transformers",), "files": {"weights": "model.safetensors"}, "inputs": taken}
    ModelCard(task=task, outputs=given, **{**plain, **served}).save(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A model without a head."""
    folder = tmp_path_factory.mktemp("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertModel

        tokens = len(tiny_language.tokenizer(folder))
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=tokens, max_position_embeddings=64, **SMALL)).save_pretrained(folder)
    served = {"engines": ("onnx", "transformers"), "files": {"weights": "model.safetensors", "onnx": "model.onnx"}}
    inputs = tuple(TensorCard(name=name, datatype="INT64") for name in ("input_ids", "attention_mask"))
    card(folder, "feature-extraction", "input_ids", **served, inputs=inputs, transform={"name": "text", "length": 64})
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A classifier of three classes."""
    folder = tmp_path_factory.mktemp("vit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    card(folder, "image-classification", "pixel_values")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rows = [(text, int("cat" in text or "dog" in text)) for text in tiny_language.TEXTS]
    part = {"text": [text for text, _ in rows], "beast": [label for _, label in rows]}
    counts = {"counts": [sum(not label for _, label in rows), sum(label for _, label in rows)]}
    statistics = dict.fromkeys(tiny_datasets.ROWS, counts)
    features = {"text": Feature(type="text"), "beast": Feature(type="label", names=("no", "yes"), statistics=statistics)}
    return tiny_datasets.write(tmp_path_factory.mktemp("texts"), features, dict.fromkeys(tiny_datasets.ROWS, part), "beast")


def train(folder, dataset, base, **changes):
    folder.mkdir()
    config = {
        "recipe": "transformers",
        "epochs": 6,
        "batch_size": 10,
        "lr": 0.005 if "lora" not in changes or changes["lora"] is None else 0.02,
        **changes,
    }
    given = {
        role: Input(f"{role}@1", {}, FolderView(path, "h")) for role, path in (("dataset", dataset.folder), ("base", base))
    }
    outputs = FolderOutputs(folder)
    run(TrainConfig.model_validate(config), given, outputs, FolderContext(folder))
    return outputs.published


@pytest.mark.parametrize("lora", [None, {"keep": "both"}])
def test_texts_are_told_apart_and_every_version_loads_by_itself(tmp_path, bert, texts, lora):
    made = train(tmp_path / "job", texts, bert, lora=lora)
    assert made["model"]["metadata"]["metrics"]["select"]["accuracy"] > 0.9
    for one in made.values():  # nothing of the graph that the base was served by
        said = ModelCard.load(one["folder"])
        assert (said.labels, said.engines, said.transform) == (("no", "yes"), ("transformers",), None)
        assert ("onnx" not in said.files, [spec.name for spec in said.inputs]) == (True, ["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification as Classifier

        model = Classifier.from_pretrained(made["model"]["folder"]).eval()
        assert model.config.id2label == {0: "no", 1: "yes"}
        tokens = torch.arange(5, 25)[None]
        if lora:
            base = Classifier.from_pretrained(bert, num_labels=2)
            adapted = PeftModel.from_pretrained(base, made["adapter"]["folder"]).eval()
            assert torch.allclose(adapted(tokens).logits, model(tokens).logits, atol=1e-5)


def pictures(folder):
    """Dark and light ones, as `tiny_datasets.images` has them, counted."""
    splits = {name: {"picture": [tiny_datasets.png(200 * (row % 2) + row) for row in range(40)], "kind": [0, 1] * 20}
              for name in tiny_datasets.ROWS}  # fmt: skip
    statistics = {name: {"counts": [20, 20]} for name in tiny_datasets.ROWS}
    kind = Feature(type="label", names=("dark", "light"), statistics=statistics)
    return tiny_datasets.write(folder, {"picture": Feature(type="image"), "kind": kind}, splits, "kind")


@pytest.mark.parametrize("lora", [None, {"keep": "merged"}])
def test_images_get_a_head_of_their_own_classes(tmp_path, vit, lora):
    made = train(tmp_path / "job", pictures(tmp_path / "images"), vit, lora=lora)
    assert made["model"]["metadata"]["metrics"]["select"]["accuracy"] > 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForImageClassification

        assert AutoModelForImageClassification.from_pretrained(made["model"]["folder"]).config.num_labels == 2


def test_what_does_not_go_together_is_said(tmp_path, bert, texts):
    with pytest.raises(Invalid, match="one text or image column"):
        transformers(TrainConfig(recipe="transformers", transformers={"column": "beast"}), texts, bert)
    with pytest.raises(Invalid, match="preprocessor_config"):
        transformers(TrainConfig(recipe="transformers"), tiny_datasets.images(tmp_path / "images"), bert)
