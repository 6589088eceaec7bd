"""The door to Hugging Face's libraries: nobody is asked, and what they say is told in our words."""

import os
import shutil

import pytest
import tiny_language

from modelyard.engines.huggingface import copy_companions, hub, open_model, open_tokenizer
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
    copy_companions(tmp_path / "llama", tmp_path / "other")
    assert open_tokenizer(tmp_path / "other").get_vocab() == open_tokenizer(tmp_path / "llama").get_vocab()


def test_pickled_weights_are_not_read(tmp_path):
    tiny_language.llama(tmp_path / "llama")
    shutil.move(tmp_path / "llama" / "model.safetensors", tmp_path / "llama" / "pytorch_model.bin")
    with pytest.raises(Invalid):
        open_model(tmp_path / "llama", "AutoModelForCausalLM")
