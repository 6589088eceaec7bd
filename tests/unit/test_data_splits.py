from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.data.splits import SHARES, SPLITS, by_name, place, split_of
from modelyard.errors import Invalid

PINNED = ["train", "train", "train", "select", "select", "train", "train", "select"]


def test_the_split_of_a_content_never_changes():
    """Pinned: another answer here would move the samples of every dataset that was ever imported."""
    assert [split_of(str(n).encode()) for n in range(8)] == PINNED


def test_shares_are_kept():
    counts = Counter(split_of(str(n).encode()) for n in range(20_000))
    assert sum(SHARES.values()) == 100
    assert all(abs(counts[split] / 200 - share) < 1 for split, share in SHARES.items())


@given(st.lists(st.binary(max_size=20)), st.lists(st.binary(max_size=20)), st.randoms())
def test_growth_order_and_duplicates_move_nothing(samples, more, random):
    before = {content: split_of(content) for content in samples}
    grown = [*samples, *more, *samples]
    random.shuffle(grown)
    after = {}
    for content in grown:
        assert after.setdefault(content, split_of(content)) == split_of(content)
    assert before.items() <= after.items()
    assert set(after.values()) <= set(SPLITS)


@given(st.binary(), st.sampled_from(["train", "select", "report", None]))
def test_what_a_source_keeps_apart_stays_apart(content, given):
    own = frozenset({"report"})
    put = place(content, given, own)
    assert (put == "report") == (given == "report")
    assert put in (given, split_of(content), "train")
    assert place(content, given, frozenset()) == split_of(content)


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train.jsonl", "valid.jsonl", "test.jsonl"], ["train", "select", "report"]),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], ["train", "train"]),
        (["default/train/0.parquet", "default/validation/0.parquet"], ["train", "select"]),
        (["a.txt", "test.txt"], [None, None]),
        (["training-plan.txt", "b.txt"], [None, None]),
        (["test.jsonl"], [None]),
    ],
)
def test_splits_by_the_names_of_files(paths, splits):
    assert list(by_name(paths).values()) == splits


def test_a_file_of_an_unknown_split_is_refused():
    with pytest.raises(
        Invalid, match=r"'unsupervised.parquet' is of no split that is known, while other files are named train"
    ):
        by_name(["train.parquet", "unsupervised.parquet"])
