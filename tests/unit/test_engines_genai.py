"""The engine `genai` on a tiny GGUF: it says what transformers says of the same file, in parts, to many callers at once, never
past a grant."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_language
import torch
from test_conversion_gguf import CARD, SIZE

from modelyard.conversion.base import CONVERTERS
from modelyard.conversion.gguf import KIND, read_back, write
from modelyard.engines import genai as module
from modelyard.engines.base import ENGINES
from modelyard.engines.huggingface import open_model, open_tokenizer
from modelyard.errors import Invalid, NotFound
from modelyard.optimisation.language.walk import Walk
from modelyard.tensors import Call, Tensor

ASKED, OTHER = "the cat of rome is", "the king of oslo"
MOST = 100  # steps after which a loop that has not ended never will


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("genai")
    tiny_language.llama(root / "model", **SIZE)
    (root / "out").mkdir()
    return root / "out", CONVERTERS.get("gguf").convert(root / "model", CARD, root / "out", {})


@pytest.fixture(scope="module")
def engine(made):
    engine = ENGINES.get("genai")(*made)
    yield engine
    engine.close()


def call(name, text, tokens, grant=None, **more):
    given = Tensor("text", "BYTES", np.array([text.encode()], dtype=object))
    return Call(name, "p", "d", "1", (given,), parameters={"max_tokens": tokens, "ignore_end": True, **more}, grant=grant)


def drive(engine, *waited, steps=MOST):
    said: dict[str, list] = {}
    for _ in range(steps):
        for name, part, last in engine.step():
            said.setdefault(name, []).append((part, last))
        if waited and all(name in said and said[name][-1][1] for name in waited):
            return said
    assert not waited, f"no end after {steps} steps: {said}"
    return said


def text(parts):
    return b"".join(tensor.array.item() for part, _ in parts for tensor in part.outputs).decode()


def units(parts):
    return sum(part.units for part, _ in parts)


def expected(folder, asked, tokens):
    """By transformers, the likeliest token each time."""
    tokenizer, model = open_tokenizer(folder), read_back(folder)
    ids = tokenizer(asked)["input_ids"]
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[-tokens:], skip_special_tokens=True)


def test_it_says_what_transformers_says_of_the_same_file_in_parts(made, engine):
    engine.add(call("a", ASKED, 8))
    parts = drive(engine, "a")["a"]
    assert text(parts).rstrip("\ufffd") == expected(made[0], ASKED, 8).rstrip("\ufffd")
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]
    assert (units(parts), len(parts) > 1) == (8, True)
    assert drive(engine, steps=3) == {}, "nothing follows the last part"


@pytest.mark.parametrize("grant", [0, 1, 3])
def test_never_past_the_grant(engine, grant):
    engine.add(call("short", ASKED, 8, grant=grant))
    engine.add(call("free", ASKED, 8))
    said = drive(engine, "short", "free")
    assert (units(said["short"]), units(said["free"])) == (grant, 8)
    assert text(said["free"]).startswith(text(said["short"]).rstrip("\ufffd"))


def test_calls_join_a_running_loop_and_each_gets_its_own(engine):
    engine.add(call("one", ASKED, 8))
    before = drive(engine, steps=2)
    engine.add(call("two", OTHER, 4))
    after = drive(engine, "one", "two")
    engine.add(call("again", ASKED, 8))
    alone = text(drive(engine, "again")["again"])
    assert text(before["one"] + after["one"]) == alone
    assert units(after["two"]) == 4


def test_who_is_cancelled_is_not_heard_of_again_and_its_id_is_free(engine):
    for name in ("stays", "goes"):
        engine.add(call(name, ASKED, 6))
    drive(engine, steps=1)
    engine.cancel("goes")
    engine.cancel("never")
    assert set(drive(engine, "stays")) == {"stays"}
    engine.add(call("goes", OTHER, 2))
    assert units(drive(engine, "goes")["goes"]) == 2


@pytest.mark.parametrize("order", [("before", "long", "after"), ("long", "before", "after"), ("before", "after", "grows")])
def test_a_text_that_there_is_no_room_for_is_refused_alone(made, monkeypatch, order):
    """OpenVINO ends all that are beside it, too."""

    def small():
        config = module.genai.SchedulerConfig()
        config.num_kv_blocks = 8  # of 32 tokens
        return config

    monkeypatch.setattr(module, "_scheduler", small)
    engine, said, refused = ENGINES.get("genai")(*made), {}, []
    asked = {"before": (ASKED, 40), "after": (OTHER, 40), "long": ("the cat of rome is " * 60, 8), "grows": (ASKED, 400)}
    for name in order:
        engine.add(call(name, *asked[name]))
    for step in range(10 * MOST):
        if step == 50:
            engine.add(call("joins", ASKED, 40))
        try:
            parts = engine.step()
        except Invalid as error:
            refused.append(error.message)
            continue
        for name, part, last in parts:
            said.setdefault(name, []).append((part, last))
        if refused and all(name in said and said[name][-1][1] for name in ("before", "after", "joins")):
            break
    (message,) = refused
    (too_long,) = {"long", "grows"} & set(order)
    assert message.startswith(f"Call '{too_long}' asks for {asked[too_long][1]} tokens after a text of ")
    for name in ("before", "after"):
        engine.add(call("alone", *asked[name]))
        assert text(said[name]) == text(drive(engine, "alone")["alone"])
        assert [last for _, last in said[name]] == [False] * (len(said[name]) - 1) + [True]
    engine.close()


def test_text_that_is_not_utf8_is_the_callers_fault(engine):
    given = Tensor("text", "BYTES", np.array([b"ab\xff"], dtype=object))
    with pytest.raises(Invalid, match=r"Row 0 of 'text': byte 2 is not UTF-8 text"):
        engine.add(Call("bad", "p", "d", "1", (given,)))
    assert not drive(engine, steps=1)


def test_a_seed_gives_the_same_text_again(engine):
    found = []
    for name in ("a", "b"):
        engine.add(call(name, ASKED, 12, temperature=1.5, seed=7))
        found.append(text(drive(engine, name)[name]))
    assert found[0] == found[1]


def test_five_bits_say_what_transformers_says_of_the_same_file(tmp_path):
    tiny_language.llama(tmp_path / "model", **SIZE)
    (tmp_path / "five").mkdir()
    model, _ = open_model(tmp_path / "model", KIND, dtype=torch.float32)
    walk = Walk(model, lambda name: "q5_0")
    walk.nearest()
    card = write(model, tmp_path / "model", CARD, tmp_path / "five", walk.rounded)
    engine, reference = ENGINES.get("genai")(tmp_path / "five", card), read_back(tmp_path / "five")
    ids = open_tokenizer(tmp_path / "model")(ASKED, return_tensors="pt")["input_ids"]
    engine.add(call("five", ASKED, 12))
    said = text(drive(engine, "five")["five"])
    meant = reference.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
    assert said == open_tokenizer(tmp_path / "model").decode(meant, skip_special_tokens=True)
    engine.close()


def test_a_file_that_is_none_is_refused_in_a_line(made, tmp_path):
    folder, card = made
    (tmp_path / "model.gguf").write_bytes((folder / "model.gguf").read_bytes()[:2000])
    with pytest.raises(Invalid) as caught:
        ENGINES.get("genai")(tmp_path, card)
    assert "\n" not in caught.value.message
    with pytest.raises(Invalid, match=r"files\.gguf"):
        ENGINES.get("genai")(folder, card.changed(files={"onnx": "m.onnx"}))
    (tmp_path / "model.gguf").unlink()
    with pytest.raises((Invalid, NotFound)):
        ENGINES.get("genai")(tmp_path, card)


def test_each_token_that_may_end_an_answer_ends_it_unless_the_caller_ignores_ends(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_language.llama(folder, **SIZE)
    tokenizer, model = open_tokenizer(folder), open_model(folder, KIND, dtype=torch.float32)[0]
    ids = tokenizer(ASKED, return_tensors="pt")["input_ids"]
    first = int(model.generate(ids, max_new_tokens=1, do_sample=False, eos_token_id=None)[0, -1])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5, 6, first]}))
    out.mkdir()
    engine = ENGINES.get("genai")(out, CONVERTERS.get("gguf").convert(folder, CARD, out, {}))
    engine.add(call("ends", ASKED, 8, ignore_end=False))
    engine.add(call("goes on", ASKED, 8))
    heard = drive(engine, "ends", "goes on")
    assert (units(heard["ends"]), units(heard["goes on"])) == (1, 8)
    engine.close()
