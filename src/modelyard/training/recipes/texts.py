"""Texts and chats as documents of tokens, by the tokenizer of the model that is trained.

`causal_lm` and `transformers` call it. A chat is written by the tokenizer's own template; which of its tokens are answers is
found from what the template writes before and after each of them, so that no template needs to say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from modelyard.errors import Invalid
from modelyard.training.recipes.packing import Document

Messages = Sequence[dict[str, str]]
_AT_ONCE = 256  # texts that the tokenizer is given together, on its own threads


def documents(tokenizer: Any, texts: Sequence[str], check: Callable[[], None]) -> Iterator[Document]:
    """Each text with what the tokenizer puts around it, ended by its end-of-text token."""
    end = tokenizer.eos_token_id
    for at in range(0, len(texts), _AT_ONCE):
        check()
        for tokens in tokenizer(list(texts[at : at + _AT_ONCE]), verbose=False)["input_ids"]:
            ended = tokens if end is None or (tokens and tokens[-1] == end) else [*tokens, end]
            yield Document(np.array(ended, np.int32))


def conversations(
    tokenizer: Any, chats: Sequence[Messages], check: Callable[[], None], *, answers: bool = True
) -> Iterator[Document]:
    """Each chat as the template writes it; of `answers` alone, or of everything, something is learned. Raises `Invalid` where
    the tokenizer has no template, or writes a chat otherwise once it goes on."""
    if not tokenizer.chat_template:
        raise Invalid("The model's tokenizer has no chat template: it was not made for chats. Train it on a text column.")
    if answers and not tokenizer.is_fast:
        raise Invalid("The model's tokenizer does not say where its tokens lie in a text (it has no tokenizer.json).")
    for row, messages in enumerate(chats):
        if row % _AT_ONCE == 0:
            check()
        text = _written(tokenizer, messages, row)
        spans = answer_spans(tokenizer, messages, row) if answers else [(0, len(text))]
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=answers, verbose=False)
        tokens = np.array(found["input_ids"], np.int32)
        if not answers:
            yield Document(tokens)
            continue
        starts, ends = np.array(found["offset_mapping"], np.int64).reshape(-1, 2).T
        learned = np.zeros(len(tokens), bool)
        for begin, end in spans:  # a token that reaches into an answer belongs to it
            learned |= (ends > begin) & (starts < end)
        yield Document(tokens, learned)


def answer_spans(tokenizer: Any, messages: Messages, row: int) -> list[tuple[int, int]]:
    """Where in the written chat the assistant's answers lie: from what opens them to what ends them, that included."""
    spans = []
    whole = _written(tokenizer, messages, row)
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _written(tokenizer, messages[:at], row, opened=True) if at else ""
        after = _written(tokenizer, messages[: at + 1], row)
        if not (after.startswith(before) and whole.startswith(after)):
            raise Invalid(
                f"Row {row}: the tokenizer's chat template writes message {at + 1} otherwise where more follows, so that the "
                "answers cannot be told from the rest; train on everything (causal_lm.learn=all)."
            )
        spans.append((len(before), len(after)))
    return spans


def _written(tokenizer: Any, messages: Messages, row: int, *, opened: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened))
    except Exception as error:  # the template is the model's own program
        raise Invalid(f"Row {row}: the tokenizer's chat template refuses the chat: {str(error)[:200]}") from error
