"""A language model is imported, fine-tuned by two ranks through the platform, and taken home; two ranks learn what one does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hub_server import COMMIT, serving
from safetensors.torch import load_file

from modelyard.client import Yard
from modelyard.errors import Invalid
from modelyard.testing import yard

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import tiny_datasets
import tiny_language
from test_training_finetuning import logits, tiny_base
from test_training_ranks import facts, launch  # noqa: F401 - a fixture

from modelyard.data.datasets import Feature

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
LORA = {"epochs": 3, "batch_size": 8, "lr": 0.01, "causal_lm": {"length": 32}, "lora": {"keep": "both"}}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with yard(tmp_path_factory.mktemp("yard")) as client:
        yield client


def test_a_base_becomes_an_adapter_and_a_merged_model(platform: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_language.llama(tmp_path / "llama")
    (tmp_path / "llama" / "modeling_own.py").write_text("raise SystemExit")
    (tmp_path / "animals.txt").write_text("\n".join(tiny_language.TEXTS))
    files = {path.name: path.read_bytes() for path in (tmp_path / "llama").iterdir()}
    with serving({"tiny/llama": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        base = platform.import_model("llama", "hf:tiny/llama")
    assert (base["task"], base["metadata"]["architecture"]) == ("text-generation", "LlamaForCausalLM")
    assert base["metadata"]["source"] == f"hf:tiny/llama@{COMMIT}"
    platform.import_dataset("animals", tmp_path / "animals.txt", rows="line")
    job = platform.train("animal-llama", "animals@1", "causal-lm", base="llama@1", ranks=2, wait=False, **LORA)
    outputs = {output["name"]: output["reference"] for output in platform.wait(job["id"])["outputs"]}
    assert outputs == {"adapter": "animal-llama@1", "model": "animal-llama@2"}

    curve = platform.version("animal-llama@2")["metadata"]["curve"]
    assert curve[-1]["select_loss"] < curve[0]["select_loss"]
    parents = {parent["role"]: parent for parent in platform.lineage("animal-llama@1")["parents"]}
    assert parents["base"]["reference"] == "llama@1"
    homes = {name: platform.fetch(reference, tmp_path / name) for name, reference in outputs.items()}
    home = platform.fetch("llama@1", tmp_path / "base")
    assert not (home / "modeling_own.py").exists()

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home), homes["adapter"])
    merged = AutoModelForCausalLM.from_pretrained(homes["model"])
    assert torch.allclose(logits(adapted), logits(merged), atol=1e-5)
    with pytest.raises(Invalid, match="text-generation"):
        platform.deploy("animals", "animal-llama@2")


def test_two_ranks_learn_by_tokens_what_one_learns(launch, tmp_path: Path) -> None:  # noqa: F811
    """In float64, from blocks with one to many learned tokens: the mean over ranks' means would be another."""
    texts = [" ".join(tiny_language.TEXTS[at : at + 1 + at % 4])[: 9 + 23 * (at % 5)] for at in range(45)]
    rows = {name: {"text": texts if name == "train" else texts[:9]} for name in tiny_datasets.ROWS}
    dataset = tiny_datasets.write(tmp_path / "texts", {"text": Feature(type="text")}, rows, None)
    tiny_base(tmp_path / "llama", max_position_embeddings=128)
    config = {"recipe": "causal-lm", "dtype": "float64", "epochs": 2, "batch_size": 9, "lr": 0.05, "optimiser": "sgd",
              "causal_lm": {"length": 48, "together": False}}  # fmt: skip
    given = {"dataset": dataset.folder, "base": tmp_path / "llama"}
    for ranks in (1, 2):
        facts(launch(tmp_path / str(ranks), config, given, ranks))
    made = [(tmp_path / str(ranks) / "work" / "rows-train" / "inputs.npy").exists() for ranks in (1, 2)]
    assert made == [False, True], "of several ranks one reads, and all map its file"
    one, two = (load_file(tmp_path / str(ranks) / "model" / "model.safetensors") for ranks in (1, 2))
    assert one["model.embed_tokens.weight"].dtype == torch.float64
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-12


@pytest.mark.parametrize(
    "meshes", [("shard=2", "pipe=2"), pytest.param(("data=2", "tensor=2", "tensor=2,pipe=2"), marks=pytest.mark.soak)]
)
def test_lora_over_a_mesh_is_lora(launch, tmp_path: Path, meshes: tuple[str, ...]) -> None:  # noqa: F811
    """The adapter and the merged model, whichever way the base was held; its embeddings are tied."""
    texts = tiny_language.TEXTS[:40]
    rows = {name: {"text": texts if name == "train" else texts[:9]} for name in tiny_datasets.ROWS}
    dataset = tiny_datasets.write(tmp_path / "texts", {"text": Feature(type="text")}, rows, None)
    tiny_base(tmp_path / "llama")
    config = {**LORA, "recipe": "causal-lm", "dtype": "float64", "epochs": 2}
    given = {"dataset": dataset.folder, "base": tmp_path / "llama"}
    facts(launch(tmp_path / "alone", config, given, 1))
    for mesh in meshes:
        facts(launch(tmp_path / mesh, {**config, "mesh": mesh}, given, 2 ** mesh.count("=")))
        for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
            one, two = (load_file(tmp_path / way / name) for way in ("alone", mesh))
            assert max(float((one[tensor] - two[tensor]).abs().max()) for tensor in one) <= 1e-12, (mesh, name)
    start = load_file(tmp_path / "llama" / "model.safetensors")
    assert any(float((one[tensor] - start[tensor]).abs().max()) > 1e-3 for tensor in start)
