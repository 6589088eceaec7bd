"""A language model is imported with its graph, deployed as plain tensors, and goes on through the gateway as it should."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from modelyard.errors import ModelyardError
from modelyard.testing import yard

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import tiny_language

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_a_decoder_goes_on_through_the_gateway(tmp_path: Path) -> None:
    import torch

    model = tiny_language.llama(tmp_path / "given", initializer_range=0.3)
    ids = np.array([[9, 30, 7, 200, 41], [8, 7, 90, 33, 5]])
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with torch.inference_mode():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        wanted = model.generate(**given, do_sample=False, max_new_tokens=4, eos_token_id=None).numpy()
    with yard(tmp_path / "yard") as platform:
        version = platform.import_model("tiny", tmp_path / "given", onnx=True)
        assert version["metadata"]["verification"]["ok"]
        assert platform.deploy("tiny", "tiny")["state"] == "ready"
        past = {
            f"past_key_values.{at}.{what}": np.zeros((2, 2, 0, 4), np.float32) for at in (0, 1) for what in ("key", "value")
        }
        text, new = ids, ids
        for _ in range(4):
            made = platform.predict("tiny", {"input_ids": new, "attention_mask": mask, **past})
            new = made["logits"][:, -1].argmax(-1)[:, None]
            past = {name.replace("present", "past_key_values"): array for name, array in made.items() if name != "logits"}
            text, mask = np.hstack([text, new]), np.hstack([mask, np.ones_like(new)])
        assert text.tolist() == wanted.tolist()
        with pytest.raises(ModelyardError, match="past_key_values"):
            platform.predict("tiny", {"input_ids": ids, "attention_mask": mask})
