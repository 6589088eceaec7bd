"""Answers kept: what a key depends on, who is answered, and how much is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.cache import _ENTRY, Cache, key_of

ASKED = {
    "project": "p",
    "deployment": "d",
    "identity": "m@1 onnx hash",
    "door": "oip",
    "verb": "infer",
    "head": {},
    "body": b"x",
}


def key(**changed):
    return key_of(**{**ASKED, **changed})


def test_a_key_names_the_project_the_version_and_the_whole_question():
    others = [
        key(project="q"),
        key(deployment="e"),
        key(identity="n@1 onnx hash"),
        key(door="v1"),
        key(verb="explain"),
        key(body=b"y"),
        key(head={"accept": "text/event-stream"}),
        key(head={"inference-header-content-length": "3"}),
    ]
    assert len({key(), *others}) == 1 + len(others)


def test_what_only_names_the_call_is_no_part_of_it():
    assert key(head={"x-request-id": "a", "traceparent": "00-1"}) == key(head={"x-request-id": "b"}) == key()


def test_parts_of_a_key_cannot_run_into_each_other():
    assert key(head={"a": "b", "c": "d"}) != key(head={"a": "b\0c\0d"})
    assert key(body=b"x\0a\0b") != key(body=b"x", head={"a": "b"})


def test_the_least_recently_used_goes_first_and_what_is_large_is_not_kept():
    cache = Cache(16 * (_ENTRY + 100))
    keys = [key(body=bytes([n])) for n in range(20)]
    for one in keys[:16]:
        cache.put(one, None, b"a" * 100)
    assert cache.get(keys[0]) is not None
    cache.put(keys[16], None, b"a" * 100)
    assert cache.get(keys[1]) is None
    assert cache.get(keys[0]).body == b"a" * 100
    cache.put(keys[17], None, b"a" * 101)
    assert cache.get(keys[17]) is None


@given(st.integers(0, 100_000), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5000)), max_size=80))
def test_it_never_keeps_more_than_it_has_room_for(room, asked):
    cache = Cache(room)
    for number, size in asked:
        cache.put(key(body=bytes([number])), None, b"a" * size)
        assert sum(len(kept.body) + _ENTRY for kept in cache._kept.values()) == cache._taken <= room
