"""The door to Hugging Face's libraries: nobody is asked, and what they say is told in our words."""

import json
import os
import shutil

import pytest
import tiny_language

from modelyard.engines.huggingface import copy_companions, ends, hub, open_model, open_tokenizer
from modelyard.errors import Invalid

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_the_hub_is_off_while_the_library_is_used():
    with hub():
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_folder_that_is_none_is_refused(tmp_path):
    for opened in (lambda: open_model(tmp_path, "AutoModelForCausalLM"), lambda: open_tokenizer(tmp_path)):
        with pytest.raises(Invalid, match="transformers refused the model"):
            opened()


def test_a_model_opens_whole_and_its_companions_go_along(tmp_path):
    tiny_language.llama(tmp_path / "llama")
    model, wrong = open_model(tmp_path / "llama", "AutoModelForCausalLM")
    assert (type(model).__name__, wrong) == ("LlamaForCausalLM", {})
    (tmp_path / "other").mkdir()
    for name in ("LICENSE", "NOTICE.txt"):
        (tmp_path / "llama" / name).write_text("free")
    (tmp_path / "other" / "LICENSE").write_text("its own")
    copy_companions(tmp_path / "llama", tmp_path / "other")
    assert [(tmp_path / "other" / name).read_text() for name in ("LICENSE", "NOTICE.txt")] == ["its own", "free"]
    assert open_tokenizer(tmp_path / "other").get_vocab() == open_tokenizer(tmp_path / "llama").get_vocab()


def test_pickled_weights_are_not_read(tmp_path):
    tiny_language.llama(tmp_path / "llama")
    shutil.move(tmp_path / "llama" / "model.safetensors", tmp_path / "llama" / "pytorch_model.bin")
    with pytest.raises(Invalid):
        open_model(tmp_path / "llama", "AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("said", "found"), [(None, []), ({}, []), ({"eos_token_id": 2}, [2]), ({"eos_token_id": [2, 7, -1, "a", True]}, [2, 7])]
)
def test_what_ends_an_answer_may_be_one_or_several(tmp_path, said, found):
    if said is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert ends(tmp_path) == found


@pytest.mark.parametrize("said", ["[1]", "{", "\xff"])
def test_ends_that_cannot_be_read_are_refused(tmp_path, said):
    (tmp_path / "generation_config.json").write_text(said, encoding="latin-1")
    with pytest.raises(Invalid, match=r"generation_config\.json is no JSON object"):
        ends(tmp_path)
