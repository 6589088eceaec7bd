"""A Hugging Face folder is imported as it is, without what could run; what is not whole is refused."""

import json
import shutil

import pytest
import tiny_language
from safetensors.torch import load_file, save_file

from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.importing import run
from modelyard.engines.base import ModelCard
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "llama"
    tiny_language.llama(folder)
    return folder


@pytest.fixture
def upload(made, tmp_path):
    return shutil.copytree(made, tmp_path / "upload")


def imported(upload, tmp_path, **config):
    (tmp_path / "work").mkdir()
    outputs = FolderOutputs(tmp_path / "out")
    files = {"files": Input("artefact:f", {}, FolderView(upload, "f"))}
    run(ImportModelConfig(**config), files, outputs, FolderContext(tmp_path / "work"))
    return outputs.published["model"]


def changed(upload, **values):
    said = json.loads((upload / "config.json").read_text())
    (upload / "config.json").write_text(json.dumps({**said, **values}))


def test_the_version_is_the_folder_without_what_could_run(upload, tmp_path):
    (upload / "modeling_own.py").write_text("raise SystemExit")
    (upload / "pytorch_model.bin").write_bytes(b"no pickle is read")
    (upload / "LICENSE").write_text("free")
    version = imported(upload, tmp_path)
    names = {path.name for path in version["folder"].iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "model.json", "README.md"} <= names
    assert not names & {"modeling_own.py", "pytorch_model.bin"}
    card = ModelCard.load(version["folder"])
    assert (card.task, card.engines, card.files["weights"]) == ("text-generation", ("transformers",), "model.safetensors")
    assert version["metadata"]["parameters"] == 9616
    readme = (version["folder"] / "README.md").read_text()
    assert "AutoModelForCausalLM" in readme
    assert "modeling_own.py" in readme


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"auto_map": {"AutoModel": "own.Model"}}, "code of its own"),
        ({"architectures": ["LlamaForNothing"]}, "no task"),
        ({"architectures": None}, "names no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2"),
        ({"intermediate_size": 48}, "mismatched"),
        ({"model_type": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_transformers_cannot_open_whole_is_refused(upload, tmp_path, values, said):
    changed(upload, **values)
    with pytest.raises(Invalid, match=said):
        imported(upload, tmp_path)


def test_weights_that_are_no_numbers_are_refused(upload, tmp_path):
    weights = load_file(upload / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, upload / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Invalid, match=r"'model\.norm\.weight' holds NaN"):
        imported(upload, tmp_path)


def test_a_shard_that_the_index_names_must_be_there(upload, tmp_path):
    (upload / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))
    with pytest.raises(Invalid, match="model-00001"):
        imported(upload, tmp_path)


def test_a_pickle_that_the_index_names_is_refused_unread(upload, tmp_path):
    (upload / "w.bin").write_bytes(b"no pickle is read")
    (upload / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "w.bin"}}))
    with pytest.raises(Unsafe, match=r"names w\.bin; weights are read from files that end in \.safetensors"):
        imported(upload, tmp_path)


@pytest.mark.parametrize(
    "index",
    [[], {"weight_map": []}, {"weight_map": {"w": None}}, {"weight_map": {"w": ["a"]}}, {"weight_map": {"w": 1, "v": "a"}}],
)
def test_an_index_of_another_form_is_refused(upload, tmp_path, index):
    (upload / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Invalid, match="is not one"):
        imported(upload, tmp_path)


def test_weights_in_shards_are_taken_from_where_the_index_says(upload, tmp_path):
    weights = load_file(upload / "model.safetensors")
    (upload / "model.safetensors").unlink()
    (upload / "parts" / "deep").mkdir(parents=True)
    names = {name: f"parts/deep/{at % 2}.safetensors" for at, name in enumerate(weights)}
    for shard in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == shard}, upload / shard, metadata={"format": "pt"})
    (upload / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert imported(upload, tmp_path)["metadata"]["parameters"] == 9616


def test_of_several_folders_the_one_whose_config_is_named_is_taken_whole(upload, tmp_path):
    tiny_language.llama(upload / "b", seed=1)
    (upload / "LICENSE").write_text("of the other")
    version = imported(upload, tmp_path, file="b/config.json")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (version["folder"] / name).read_bytes() == (upload / "b" / name).read_bytes()
    assert (version["folder"] / "model.safetensors").read_bytes() != (upload / "model.safetensors").read_bytes()
    assert not (version["folder"] / "LICENSE").exists()
    assert "LICENSE" in (version["folder"] / "README.md").read_text()


def test_the_folder_says_itself_what_it_is(upload, tmp_path):
    with pytest.raises(Invalid, match="says itself"):
        imported(upload, tmp_path, labels=("a", "b"))
