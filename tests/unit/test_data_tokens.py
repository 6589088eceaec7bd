"""Texts become the tokens that the version's tokenizer makes of them; what is no text, or too much of it, is refused."""

import numpy as np
import pytest
import tiny_language
from tokenizers import Tokenizer

from modelyard.data import tokens
from modelyard.data.transforms import build
from modelyard.errors import Invalid
from modelyard.tensors import Signature, TensorSpec

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
INPUTS = ["input_ids", "attention_mask"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("version")
    tiny_language.tokenizer(made)
    fixed = Tokenizer.from_file(str(made / "tokenizer.json"))
    fixed.enable_padding(length=128)  # as many folders say it, and as nobody wants it served
    fixed.enable_truncation(3)
    fixed.save(str(made / "tokenizer.json"))
    return made


def objects(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return {"text": array}


def test_a_calls_texts_are_as_long_as_the_longest(folder):
    transform = build({"name": "text", "length": 40, "pad": 2}, folder)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    given = ["the cat of oslo is blue.", "the king", ""]
    made = transform.before(objects(*(text.encode() for text in given)))
    wanted = [plain.encode(text).ids for text in given]
    assert list(made) == INPUTS
    assert made["input_ids"].shape == (3, len(wanted[0]))
    for row, ids in enumerate(wanted):
        rest = made["input_ids"].shape[1] - len(ids)
        assert made["input_ids"][row].tolist() == ids + [2] * rest
        assert made["attention_mask"][row].tolist() == [1] * len(ids) + [0] * rest
    assert transform.ragged == {"input_ids": 2, "attention_mask": 0}


def test_what_is_longer_than_the_model_reads_is_cut(folder):
    made = build({"name": "text", "length": 5}, folder).before(objects("the cat " * 50, "a"))
    assert made["input_ids"].shape == (2, 5)


def test_no_text_at_all_is_one_empty_column(folder):
    made = build({"name": "text", "length": 5}, folder).before(objects(""))
    assert (made["input_ids"].tolist(), made["attention_mask"].tolist()) == ([[0]], [[0]])
    assert build({"name": "text", "length": 5}, folder).before(objects())["input_ids"].shape == (0, 1)


@pytest.mark.parametrize("wrong", [b"caf\xe9", "a \ud800"])
def test_what_is_not_utf8_names_its_row(folder, wrong):
    with pytest.raises(Invalid, match=r"Row 1 of 'text': byte \d is not UTF-8"):
        build({"name": "text", "length": 5}, folder).before(objects("fine", wrong))


def test_too_much_in_one_call_is_refused(folder, monkeypatch):
    transform = build({"name": "text", "length": 40}, folder)
    monkeypatch.setattr(tokens, "MAX_CALL_BYTES", 20)
    with pytest.raises(Invalid, match="texts up to row 2 have more than 20 bytes: send them in parts"):
        transform.before(objects("ten bytes.", "ten bytes.", "one more"))
    monkeypatch.setattr(tokens, "MAX_CALL_TOKENS", 8)
    with pytest.raises(Invalid, match="2 texts of up to 5 tokens in one call; there is room for 8 tokens"):
        build({"name": "text", "length": 5}, folder).before(objects("a" * 15, "b"))


def test_the_engine_must_take_tokens_and_give_the_output(folder):
    transform = build({"name": "text", "length": 5}, folder)
    ids = tuple(TensorSpec(name, "INT64", (-1, -1)) for name in INPUTS)
    out = TensorSpec("sentence_embedding", "FP32", (-1, 4))
    assert transform.signature(Signature(ids, (out,))).outputs == (TensorSpec("embedding", "FP32", (-1, 4)),)
    with pytest.raises(Invalid, match=r"makes input_ids, attention_mask, all INT64; the model takes input_ids:INT64\."):
        transform.signature(Signature(ids[:1], (out,)))
    with pytest.raises(Invalid, match="wants the output 'sentence_embedding'; the model's are other"):
        transform.signature(Signature(ids, (TensorSpec("other", "FP32", (-1, 4)),)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokenizer": "../tokenizer.json"}, "tokenizer: "),
        ({"tokenizer": "other.json"}, "reads 'other.json', which the version's folder does not have"),
        ({"tokenizer": "tokenizer_config.json"}, "'tokenizer_config.json' is no file of the library tokenizers"),
        ({"inputs": ["attention_mask"]}, "input_ids is one of them"),
        ({"inputs": ["input_ids", "pixels"]}, "inputs"),
    ],
)
def test_wrong_options_are_said(folder, options, said):
    with pytest.raises(Invalid, match=said):
        build({"name": "text", "length": 5, **options}, folder)


def test_it_needs_a_folder_and_follows_no_link(folder, tmp_path):
    with pytest.raises(Invalid, match="folder does not have"):
        build({"name": "text", "length": 5})
    (tmp_path / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    with pytest.raises(Invalid, match="folder does not have"):
        build({"name": "text", "length": 5}, tmp_path)


def test_special_tokens_must_leave_room(folder, tmp_path):
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_truncation()
    made.post_processor = TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Invalid, match="length is 2: special tokens alone are as many"):
        build({"name": "text", "length": 2}, tmp_path)
    assert build({"name": "text", "length": 3}, tmp_path).before(objects("the cat"))["input_ids"].shape == (1, 3)
