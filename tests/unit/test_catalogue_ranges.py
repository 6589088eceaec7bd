"""Ranges as RFC 9110 has them."""

import pytest

from modelyard.catalogue.ranges import Part, asked

SIZE, ROOT = 10, "r"


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2-4", 2, 5),
        ("bytes=5-", 5, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-99", 0, 10),
        ("bytes=8-99", 8, 10),
    ],
)
def test_a_part(header, start, stop):
    part = asked({"range": header}, SIZE, ROOT)
    assert isinstance(part, Part)
    assert (part.status, part.start, part.stop) == (206, start, stop)
    assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/10"
    assert part.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes=-",
        "bytes=4-2",
        "bytes=0-1,3-4",
        "lines=1-2",
        "bytes=a-b",
        "bytes=--1",
        "bytes=1-2x",
        f"bytes={'9' * 5000}-",
        "bytes=²-",
    ],
)
def test_what_is_no_single_range_gets_the_whole(header):
    part = asked({"range": header}, SIZE, ROOT)
    assert isinstance(part, Part)
    assert (part.status, part.start, part.stop) == (200, 0, 10)
    assert "Content-Range" not in part.headers


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_what_lies_behind_the_end_is_416(header):
    refused = asked({"range": header}, SIZE, ROOT)
    assert not isinstance(refused, Part)
    assert (refused.status_code, refused.headers["content-range"]) == (416, "bytes */10")


def test_if_range_of_another_content_gets_the_whole():
    same = asked({"range": "bytes=1-2", "if-range": '"r"'}, SIZE, ROOT)
    other = asked({"range": "bytes=1-2", "if-range": '"old"'}, SIZE, ROOT)
    assert isinstance(same, Part)
    assert isinstance(other, Part)
    assert (same.status, other.status) == (206, 200)


def test_an_empty_file():
    part = asked({}, 0, ROOT)
    assert isinstance(part, Part)
    assert (part.status, part.start, part.stop) == (200, 0, 0)
