"""A language model answers rows as it would callers, and is judged by what it answers; one that only transformers opens too."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_language
from test_conversion_gguf import CARD, SIZE
from test_engines_genai import expected
from test_optimisation_evaluation import evaluated, evidence
from tiny_datasets import write

from modelyard.conversion.gguf import read_back
from modelyard.data.datasets import Feature
from modelyard.engines.base import ENGINES
from modelyard.engines.huggingface import GENERATION, open_tokenizer
from modelyard.optimisation.greedy import Greedy, answering

SPLITS = {"calibrate": 1, "select": 1, "report": 40}
TOKENS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("greedy") / "model"
    tiny_language.learned(folder, **SIZE)
    CARD.save(folder)
    return folder


def prompts() -> list[str]:
    return sorted({" ".join(text.split()[:number]) for text in tiny_language.TEXTS for number in range(1, 7)})


def test_rows_are_answered_as_transformers_would_whatever_is_beside_them(model: Path, tmp_path: Path) -> None:
    folder, card = answering(model, CARD, tmp_path / "gguf")
    assert card.engines == ("genai",)
    checks: list[int] = []
    engine = Greedy(ENGINES.get("genai")(folder, card), TOKENS, lambda: checks.append(1))  # type: ignore[arg-type]
    rows = np.array([text.encode() for text in prompts()[:20]], object)
    said = engine.forward({"text": rows})["text"]
    assert len(checks) >= TOKENS
    for place in (0, 7, 19):
        assert said[place].decode().rstrip("\ufffd") == expected(folder, rows[place].decode(), TOKENS).rstrip("\ufffd")
    nothing, something = engine.forward({"text": np.array([b"", rows[7]], object)})["text"]
    assert (nothing, something) == (b"", said[7])
    engine.close()


def test_a_file_that_may_not_be_written_is_copied_and_other_models_answer_as_they_are(model: Path, tmp_path: Path) -> None:
    folder, card = answering(model, CARD, tmp_path / "gguf")
    (folder / "model.gguf").chmod(0o400)
    copied, said = answering(folder, card, tmp_path / "copy")
    assert ((copied / "model.gguf").stat().st_mode & 0o200, said) == (0o200, card)
    assert (copied / "model.gguf").read_bytes() == (folder / "model.gguf").read_bytes()
    graph = card.changed(files={"onnx": "model.onnx"}, engines=("onnx",))
    assert answering(folder, graph, tmp_path / "none") == (folder, graph)


def test_a_copy_ends_its_answers_where_the_file_does(model: Path, tmp_path: Path) -> None:
    folder, card = answering(model, CARD, tmp_path / "gguf")
    asked = prompts()[7]
    ids = open_tokenizer(folder)(asked, return_tensors="pt")["input_ids"]
    last = int(read_back(folder).generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)[0, -1])
    (folder / GENERATION).write_text(json.dumps({"eos_token_id": [1, 5, 6, last]}))  # more than the file itself has room for
    said = []
    for there, its in ((folder, card), answering(folder, card, tmp_path / "copy")):
        engine = Greedy(ENGINES.get("genai")(there, its), TOKENS, lambda: None)  # type: ignore[arg-type]
        said.append(engine.forward({"text": np.array([asked.encode()], object)})["text"][0].decode())
        engine.close()
    assert said[0] == said[1]
    assert len(said[0]) < len(expected(folder, asked, TOKENS))


def test_it_is_evaluated_by_its_answers(model: Path, tmp_path: Path) -> None:
    """The dataset wants what the original answers, so that another model can only lose."""
    folder, card = answering(model, CARD, tmp_path / "gguf")
    engine = Greedy(ENGINES.get("genai")(folder, card), TOKENS, lambda: None)  # type: ignore[arg-type]
    asked = iter(prompts())
    rows = {name: [next(asked) for _ in range(rows)] for name, rows in SPLITS.items()}
    splits = {}
    for name, texts in rows.items():
        said = engine.forward({"text": np.array([text.encode() for text in texts], object)})["text"]
        splits[name] = {"asked": texts, "answer": [text.decode(errors="replace") for text in said]}
    engine.close()
    write(tmp_path / "data", {"asked": Feature(type="text"), "answer": Feature(type="text")}, splits, "answer")
    tiny_language.llama(tmp_path / "other", seed=1, **SIZE)
    other, _ = answering(tmp_path / "other", CARD, tmp_path / "other-gguf")

    (tmp_path / "self").mkdir()
    outputs, _ = evaluated(tmp_path / "self", folder, model, tmp_path / "data", max_tokens=TOKENS)
    found = evidence(outputs)
    assert (found.metric, found.rows, found.original, found.variant, found.agreement) == ("rouge", 40, 1, 1, 1)
    assert found.drop.most(0.95) == pytest.approx(-math.log(0.05) * 100 / 40)  # as much as one row in so few may hide

    (tmp_path / "worse").mkdir()
    outputs, context = evaluated(tmp_path / "worse", other, model, tmp_path / "data", max_tokens=TOKENS, metric="wer")
    found = evidence(outputs)
    assert (found.metric, found.original) == ("wer", 0)
    assert 50 < found.drop.drop == pytest.approx(100 * found.variant)
    assert found.drop.most(0.95) > found.drop.drop
    assert [other["metric"] for other in context.facts["others"]] == ["rouge", "chrf", "bleu", "accuracy"]
    assert all(other["original"] == pytest.approx(1) for other in context.facts["others"] if other["metric"] != "bleu")
