"""A chat as a dataset keeps it: a list of messages, each with a role and a content, as one canonical JSON text.

`records` writes it, recipes read it back by `messages`. Equal chats are equal texts, whatever the source spelt them like.
"""

from __future__ import annotations

import json
from typing import Any

from modelyard.errors import Invalid

ROLES = ("system", "user", "assistant", "tool")
_KEYS = {"role", "content"}


class Chat(str):
    """The canonical text of a chat; a type of its own, so that it is told from other texts."""

    __slots__ = ()


def chat(value: Any, where: str) -> Chat:
    """Raises `Invalid` naming, after `where`, the message that is not as expected."""
    if not isinstance(value, list) or not value:
        raise Invalid(f"{where}: {_short(value)} where a list of messages was expected. Nothing was imported.")
    return Chat(
        json.dumps([_message(m, f"{where}[{n}]") for n, m in enumerate(value)], ensure_ascii=False, separators=(",", ":"))
    )


def messages(text: str) -> list[dict[str, str]]:
    """The messages of a chat that was read from a dataset."""
    read: list[dict[str, str]] = json.loads(text)
    return read


def _message(value: Any, where: str) -> dict[str, str]:
    # a source with columns has every key in every message: one without a value is not there
    given = {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else {}
    if given.keys() != _KEYS:
        what = f"keys {sorted(given)}" if given else _short(value)
        raise Invalid(
            f"{where}: {what} where a message with role and content, and nothing else, was expected. Nothing was imported."
        )
    if given["role"] not in ROLES:
        raise Invalid(
            f"{where}.role: {_short(given['role'])} where one of {', '.join(ROLES)} was expected. Nothing was imported."
        )
    if not isinstance(given["content"], str):
        raise Invalid(f"{where}.content: {_short(given['content'])} where a text was expected. Nothing was imported.")
    return {"role": given["role"], "content": given["content"]}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
