from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelyard.data.splits import SHARES, SPLITS, split_of

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
