import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.data.shards import check, positions, share, steps
from modelyard.errors import Invalid

sizes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6), st.integers(0, 5), st.integers(0, 5))


@given(sizes)
def test_every_row_is_read_once_an_epoch_whatever_the_gang(size):
    rows, batch, world, epoch, seed = size
    ranks = [list(positions(rows, epoch, seed, world, rank, batch)) for rank in range(world)]
    assert {len(parts) for parts in ranks} == {steps(rows, batch)}
    assert sorted(np.concatenate([part.positions for parts in ranks for part in parts])) == list(range(rows))


@given(sizes)
def test_a_gang_takes_the_steps_of_a_single_process(size):
    rows, batch, world, epoch, seed = size
    alone = list(positions(rows, epoch, seed, 1, 0, batch))
    ranks = [list(positions(rows, epoch, seed, world, rank, batch)) for rank in range(world)]
    for step, whole in enumerate(alone):
        parts = [parts[step] for parts in ranks]
        assert np.concatenate([part.positions for part in parts]).tolist() == whole.positions.tolist()
        assert {part.rows for part in parts} == {len(whole.positions)}
        assert [part.first for part in parts] == np.cumsum([0] + [len(part.positions) for part in parts])[:-1].tolist()
        assert len(whole.positions) <= batch


@given(sizes)
def test_what_passes_the_check_leaves_no_rank_without_rows(size):
    rows, batch, world, epoch, seed = size
    try:
        check(rows, world, batch)
    except Invalid:
        smallest = min(
            len(part.positions) for rank in range(world) for part in positions(rows, epoch, seed, world, rank, batch)
        )
        assert rows < world or smallest == 0
    else:
        assert all(len(part.positions) for rank in range(world) for part in positions(rows, epoch, seed, world, rank, batch))


@given(st.integers(0, 1000), st.integers(1, 9))
def test_shares_are_even_and_whole(rows, world):
    parts = [share(rows, world, rank) for rank in range(world)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_seed_and_epoch_shuffle():
    def order(epoch, seed):
        return [part.positions.tolist() for part in positions(50, epoch, seed, 1, 0, 10)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0) != order(0, 1)


@pytest.mark.parametrize(
    ("rows", "world", "batch", "said"),
    [
        (3, 4, 8, "3 rows for 4 ranks; each rank needs at least one: use fewer ranks"),
        (100, 4, 3, r"Batches of 2 rows \(100 rows, batch_size 3\).*larger batch_size or fewer ranks"),
    ],
)
def test_a_gang_too_large_is_refused(rows, world, batch, said):
    with pytest.raises(Invalid, match=said):
        check(rows, world, batch)
