"""A language model is optimised through the platform: pruned and in four bits as a version of its own, told from its original
by what it foretells, refused by replicas that cannot serve it yet, and answering at home."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelyard.client import Yard
from modelyard.engines.base import ENGINES, ModelCard
from modelyard.errors import Crashed
from modelyard.tensors import Call, Tensor
from modelyard.testing import yard

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import tiny_language

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Yard]:
    with yard(tmp_path / "yard") as client:
        yield client


def texts(folder: Path) -> Path:
    folder.mkdir()
    chance = random.Random(0)
    for name, rows in (("train", 200), ("validation", 60), ("test", 60)):
        lines = [" ".join(chance.choices(tiny_language.TEXTS, k=4)) for _ in range(rows)]
        pq.write_table(pa.table({"text": lines}), folder / f"{name}.parquet")
    return folder


def test_a_language_model_pruned_and_in_four_bits(platform: Yard, tmp_path: Path) -> None:
    tiny_language.learned(tmp_path / "tiny", **SIZE)
    platform.import_model("tiny", tmp_path / "tiny")
    platform.import_dataset("texts", texts(tmp_path / "texts"))
    wide = {"max_accuracy_drop": 50.0, "goal": "size", "dataset": "texts@1"}
    made = platform.optimize("tiny@1", steps=["prune:weights=0.2,by=sparsegpt", "quantize:q4_0"], **wide)
    told = made["metadata"]
    assert (told["metric"], told["variant"], told["engines"]) == ("perplexity", "prune20-sparsegpt+q4_0", ["genai"])
    assert told["verification"]["sparsity"] >= told["verification"]["pruned"] > 0.18
    assert told["select"]["size"] < 0.4 * next((tmp_path / "tiny").glob("*.safetensors")).stat().st_size
    assert told["select"]["memory"] > 1 << 20
    assert told["report"]["original"]["value"] < told["report"]["chosen"]["value"] < 1.5 * told["report"]["original"]["value"]
    with pytest.raises(Crashed, match="tiny@2 failed"):
        platform.deploy("tiny", made["reference"])
    folder = platform.fetch(made["reference"], tmp_path / "fetched")
    engine = ENGINES.get("genai")(folder, ModelCard.load(folder))
    asked = Tensor("text", "BYTES", np.array([b"the cat of rome is"], dtype=object))
    engine.add(Call("a", "", "", "", (asked,), parameters={"max_tokens": 3, "ignore_end": True}))
    said = [part for _ in range(10) for _, part, _ in engine.step()]
    assert sum(part.units for part in said) == 3
    engine.close()

    asked = sorted({text.rsplit(" ", 1)[0] + " now" * times for text in tiny_language.TEXTS for times in range(3)})
    lines = [json.dumps({"asked": text, "answer": ("red.", "blue.")[row % 2]}) for row, text in enumerate(asked)]
    (tmp_path / "asked").mkdir()
    for name, rows in (("train", lines[:1]), ("test", lines)):
        (tmp_path / "asked" / f"{name}.jsonl").write_text("\n".join(rows))
    platform.import_dataset("asked", tmp_path / "asked", target="answer", task="text-generation")
    found = platform.evaluate(made["reference"], on="asked@1", max_tokens=4)
    assert (found["against"], found["metric"], found["rows"] + found["left_out"]) == ("tiny@1", "rouge", 36)
    assert [other["metric"] for other in found["others"]] == ["chrf", "bleu", "wer", "accuracy"]
    assert 0 <= found["agreement"] <= 1
    assert platform.evaluations(made["reference"])[0]["evidence"]["metric"] == "rouge"
