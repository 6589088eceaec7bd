"""What the layers of a tiny model see: tokens of texts alone, whatever blocks are filled up with."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_language
import torch
from test_conversion_gguf import SIZE
from transformers import AutoTokenizer

from modelyard.conversion.gguf import KIND
from modelyard.engines.huggingface import open_model
from modelyard.optimisation.language.walk import Walk
from modelyard.optimisation.steps.config import Prune
from modelyard.training.recipes.packing import Document, pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk") / "model"
    tiny_language.learned(folder, **SIZE)
    return folder


@pytest.mark.parametrize("by", ["wanda", "sparsegpt"])
def test_what_blocks_are_filled_up_with_changes_nothing(folder, by):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [Document(np.array(tokenizer(text)["input_ids"])) for text in tiny_language.TEXTS]
    walks = []
    for length in (32, 64):
        model, _ = open_model(folder, KIND, dtype=torch.float32)
        walks.append(Walk(model, lambda _: "q4_0", prune=Prune(weights=0.5, by=by)))
        walks[-1].through(pack(texts, length, tokenizer.pad_token_id, together=False))
    tight, wide = walks
    assert tight.gone.keys() == wide.gone.keys()
    assert len(tight.rounded) == len(tight.gone) + 1, "the head is rounded, too"
    for name in tight.gone:
        assert (tight.gone[name] == wide.gone[name]).float().mean() > 0.99, name
    for name in tight.rounded:
        assert (tight.rounded[name].codes == wide.rounded[name].codes).float().mean() > 0.99, name
