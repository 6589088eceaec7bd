"""A small Llama learns texts and chats, whole or by LoRA, and comes out as plain transformers and peft load it."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_datasets
import tiny_language
import torch

from modelyard.data.datasets import Feature
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.training.config import Lora, TrainConfig
from modelyard.training.loop import run
from modelyard.training.recipes import lora
from modelyard.training.recipes.causal_lm import causal_lm, check_apart, learned, predict, token_loss
from modelyard.training.recipes.packing import pack
from modelyard.training.recipes.pretrained import open_network
from modelyard.training.recipes.texts import documents

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
LLAMA = "AutoModelForCausalLM"


def tiny_base(folder: Path, **changes):
    """A tiny Llama as a version is one."""
    model = tiny_language.llama(folder, **changes)
    tensor = TensorCard(name="input_ids", datatype="INT64", shape=(-1, -1))
    out = TensorCard(name="logits", datatype="FP32")
    ModelCard(task="text-generation", engines=("transformers",), files={"weights": "model.safetensors"}, inputs=(tensor,),
              outputs=(out,)).save(folder)  # fmt: skip
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    tiny_base(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    texts = tiny_language.TEXTS
    splits = {"train": texts[:48], "calibrate": texts[:4], "select": texts[48:], "report": texts[:4]}
    rows = {name: {"text": part, "odd": [0] * len(part)} for name, part in splits.items()}
    features = {"text": Feature(type="text"), "odd": Feature(type="int")}
    return tiny_datasets.write(tmp_path_factory.mktemp("texts"), features, rows, None)


def config(**changes):
    full = {"recipe": "causal-lm", "epochs": 2, "batch_size": 4, "lr": 0.01, "causal_lm": {"length": 32}, **changes}
    return TrainConfig.model_validate(full)


def train(folder: Path, dataset, base: Path, **changes) -> FolderOutputs:
    folder.mkdir()
    outputs, inputs = FolderOutputs(folder), {"dataset": dataset.folder, "base": base}
    given = {role: Input(f"{role}@1", {}, FolderView(path, f"hash of {role}")) for role, path in inputs.items()}
    run(config(**changes), given, outputs, FolderContext(folder))
    return outputs


def logits(model, tokens=(7, 8, 9, 200)):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([tokens])).logits


def test_a_packed_document_answers_as_it_does_alone(base, dataset):
    plan = causal_lm(config(), dataset, base)
    model = plan.network.model
    tokenized = list(documents(tokenizer_of(base), tiny_language.TEXTS[:9], lambda: None))
    together, alone = pack(tokenized, 32, 0), pack(tokenized, 32, 0, together=False)
    assert len(together.targets) < len(alone.targets)
    with torch.no_grad():
        losses = [
            float(token_loss(predict(model, torch.from_numpy(b.inputs)), torch.from_numpy(b.targets))) * len(b.targets)
            for b in (together, alone)
        ]
    assert learned(together.targets) == learned(alone.targets)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def tokenizer_of(base):
    from modelyard.engines.huggingface import open_tokenizer

    return open_tokenizer(base)


def test_a_model_that_mixes_packed_documents_is_refused(base):
    class Mixing(torch.nn.Module):
        """Answers with the mean of all it was given so far."""

        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(40, 8)

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids, position_ids, use_cache):
            self.logits = self.embed(input_ids).cumsum(1)
            return self

    with pytest.raises(Invalid, match=r"Mixing does not keep packed documents apart .*together=false"):
        check_apart(Mixing())


def test_the_adapter_and_the_merged_model_are_the_same_model_and_load_by_plain_peft(tmp_path, base, dataset):
    outputs = train(tmp_path / "job", dataset, base, lora={"keep": "both", "rank": 4})
    assert list(outputs.published) == ["adapter", "model"]
    adapter, merged = (outputs.published[name]["folder"] for name in ("adapter", "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        of_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        whole, before = AutoModelForCausalLM.from_pretrained(merged), AutoModelForCausalLM.from_pretrained(base)
    assert torch.allclose(logits(of_adapter), logits(whole), atol=1e-5)
    assert not torch.allclose(logits(before), logits(whole), atol=1e-3)
    card = ModelCard.load(adapter)
    assert (card.base.reference, card.base.hash) == ("base@1", "hash of base")
    assert ModelCard.load(merged).base is None
    assert sum(path.stat().st_size for path in adapter.glob("*.safetensors")) < (merged / "model.safetensors").stat().st_size
    front = (adapter / "README.md").read_text().split("---\n")[1]
    assert 'base_model: "base@1"' in front
    assert 'library_name: "peft"' in front


def test_the_same_job_gives_the_same_bytes(tmp_path, base, dataset):
    made = [train(tmp_path / name, dataset, base, lora={"keep": "both"}, epochs=1) for name in "ab"]
    for name in ("adapter", "model"):
        one, other = (outputs.published[name]["folder"] for outputs in made)
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
        assert all(path.read_bytes() == (other / path.name).read_bytes() for path in one.iterdir())


def test_the_whole_model_learns_and_its_tied_weights_stay_tied(tmp_path, base, dataset):
    outputs = train(tmp_path / "job", dataset, base, epochs=4)
    made = outputs.published["model"]
    curve = made["metadata"]["curve"]
    assert curve[-1]["select_loss"] < curve[0]["select_loss"]
    assert curve[-1]["select_perplexity"] == pytest.approx(np.exp(curve[-1]["select_loss"]))
    network = open_network(made["folder"], LLAMA)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert made["metadata"]["base"] == {"reference": "base@1", "hash": "hash of base"}


def test_a_checkpoint_under_lora_holds_what_learns(tmp_path, base, dataset):
    train(tmp_path / "job", dataset, base, lora={}, epochs=1)
    from safetensors import safe_open

    with safe_open(tmp_path / "job" / "latest" / "state.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("network.")]  # noqa: SIM118
    assert names
    assert all(".lora_" in name for name in names)


def test_an_adapter_can_be_continued(tmp_path, base, dataset):
    adapter = train(tmp_path / "job", dataset, base, lora={}, epochs=1).published["adapter"]["folder"]
    fresh, continued = (causal_lm(config(lora={}), dataset, base) for _ in range(2))
    continued.load(adapter)
    saved = tmp_path / "again"
    lora.save_adapter(continued.network.model, continued.network.model.state_dict(), "base@1", saved)
    assert (saved / lora.WEIGHTS).read_bytes() == (adapter / lora.WEIGHTS).read_bytes()
    with pytest.raises(Invalid, match=r"no adapter_model\.safetensors"):
        fresh.load(base)


def test_chats_are_learned_by_their_answers(tmp_path, base):
    chat = '[{"role":"user","content":"what is red?"},{"role":"assistant","content":"the cat."}]'
    rows = {name: {"chat": [chat] * 3} for name in tiny_datasets.ROWS}
    chats = tiny_datasets.write(tmp_path / "chats", {"chat": Feature(type="chat")}, rows, None)
    plan = causal_lm(config(), chats, base)
    inputs, targets = plan.read(chats, "train", lambda: None)
    assert inputs.shape[1:] == (2, 32)
    answers = tokenizer_of(base).decode(targets[targets != -100])
    assert answers == "the cat.</s>" * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"causal_lm": {"length": 65}}, "the model knows 64 positions"),
        ({"causal_lm": {"column": "odd"}}, "'odd' is of type int"),
        ({"lora": {"layers": ["no_such"]}}, "no_such"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_first_step(base, dataset, changes, said):
    with pytest.raises(Invalid, match=said):
        causal_lm(config(**changes), dataset, base)


def test_a_base_is_needed_and_must_be_a_hugging_face_folder(tmp_path, dataset):
    for folder in (None, tmp_path):
        with pytest.raises(Invalid, match="input 'base'"):
            causal_lm(config(), dataset, folder)


def test_linear_layers_leave_out_the_output(base):
    model = open_network(base, LLAMA)
    assert lora.linear_layers(model) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    wrapped = lora.wrap(model, Lora(layers=("q_proj",)), "CAUSAL_LM")
    assert {name.rpartition(".lora_")[0][-6:] for name, p in wrapped.named_parameters() if p.requires_grad} == {"q_proj"}


def test_the_adapters_config_names_its_base_in_order(tmp_path, base):
    wrapped = lora.wrap(open_network(base, LLAMA), Lora(), "CAUSAL_LM")
    lora.save_adapter(wrapped, wrapped.state_dict(), "llama@3", tmp_path / "a")
    said = json.loads((tmp_path / "a" / lora.CONFIG).read_text())
    assert said["base_model_name_or_path"] == "llama@3"
    assert said["target_modules"] == sorted(said["target_modules"])
