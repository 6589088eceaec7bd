"""Texts and chats become tokens; of a chat it is known which are answers."""

import pytest
import tiny_language

from modelyard.errors import Invalid
from modelyard.training.recipes.texts import answer_spans, conversations, documents

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is red?"},
    {"role": "assistant", "content": "the cat."},
    {"role": "user", "content": "and blue?"},
    {"role": "assistant", "content": "the dog."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_language.tokenizer(tmp_path_factory.mktemp("tokenizer"))


def nothing():
    pass


def test_a_text_ends_with_the_end_token_and_reads_back(tokenizer):
    (document,) = documents(tokenizer, [tiny_language.TEXTS[0]], nothing)
    assert document.learned is None
    assert document.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(document.tokens[:-1]) == tiny_language.TEXTS[0]


def test_the_learned_tokens_of_a_chat_are_its_answers_with_their_ends(tokenizer):
    (document,) = conversations(tokenizer, [CHAT], nothing)
    assert tokenizer.decode(document.tokens[document.learned]) == "the cat.</s>the dog.</s>"
    assert tokenizer.decode(document.tokens) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_all_of_a_chat_can_be_learned(tokenizer):
    (document,) = conversations(tokenizer, [CHAT], nothing, answers=False)
    assert document.learned is None


def test_a_chat_that_an_answer_opens(tokenizer):
    (document,) = conversations(tokenizer, [CHAT[2:3]], nothing)
    assert "the cat.</s>" in tokenizer.decode(document.tokens[document.learned])


def test_a_template_that_writes_a_chat_otherwise_once_it_goes_on_is_refused(tokenizer, monkeypatch):
    forgetful = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}.{% endif %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", forgetful)
    with pytest.raises(Invalid, match=r"Row 3: .* message 3 otherwise"):
        answer_spans(tokenizer, CHAT, 3)


@pytest.mark.parametrize(
    ("template", "said"), [(None, "no chat template"), ("{{ raise_exception('no system') }}", "no system")]
)
def test_a_tokenizer_that_cannot_write_chats_says_so(tokenizer, monkeypatch, template, said):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(Invalid, match=said):
        list(conversations(tokenizer, [CHAT], nothing))
