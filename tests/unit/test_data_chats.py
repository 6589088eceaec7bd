import pytest

from modelyard.data.chats import chat, messages
from modelyard.errors import Invalid

HELLO = [{"role": "user", "content": "Grüezi?"}, {"role": "assistant", "content": "Hoi."}]


def test_equal_chats_are_equal_texts():
    turned = [{"content": m["content"], "role": m["role"], "name": None} for m in HELLO]
    assert chat(HELLO, "here") == chat(turned, "here") == chat(messages(chat(HELLO, "here")), "here")
    assert messages(chat(turned, "here")) == HELLO


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"here: \[\] where a list of messages"),
        ("hi", "here: 'hi' where a list of messages"),
        ([HELLO[0], "hi"], r"here\[1\]: 'hi' where a message"),
        ([{"role": "user"}], r"here\[0\]: keys \['role'\] where a message with role and content"),
        ([{**HELLO[0], "weight": 1}], r"keys \['content', 'role', 'weight'\]"),
        ([{"role": "bot", "content": ""}], r"here\[0\].role: 'bot' where one of system, user, assistant, tool"),
        ([{"role": "user", "content": [1]}], r"here\[0\].content: \[1\] where a text"),
    ],
)
def test_what_is_no_chat_is_named(given, said):
    with pytest.raises(Invalid, match=said):
        chat(given, "here")
