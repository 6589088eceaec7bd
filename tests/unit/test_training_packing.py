"""Blocks hold every learned token once, and nothing of one document is predicted from another."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.training.recipes.packing import IGNORED, TOKENS, Document, fit, pack, parts

PADDING = 99_999
texts = st.lists(st.integers(0, 40), max_size=25)


def documents(sizes):
    """Tokens that are all different, so that each can be told where it went."""
    ends = np.cumsum([0, *sizes])
    return [Document(np.arange(a, b, dtype=np.int32)) for a, b in pairwise(ends)]


@given(sizes=texts, length=st.integers(2, 20), together=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_token_but_a_documents_first_is_predicted_once_from_the_one_before_it(sizes, length, together):
    given = documents(sizes)
    blocks = pack(given, length, PADDING, together=together)
    learned = blocks.targets[blocks.targets != IGNORED]
    firsts = {int(document.tokens[0]) for document in given if len(document.tokens)}
    assert sorted(learned) == [token for token in range(sum(sizes)) if token not in firsts]
    tokens = blocks.inputs[:, TOKENS][blocks.targets != IGNORED]
    assert np.array_equal(tokens + 1, learned)


@given(sizes=texts, length=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_positions_begin_again_with_every_piece_and_with_the_padding(sizes, length):
    blocks = pack(documents(sizes), length, PADDING)
    for tokens, positions in blocks.inputs:
        for at in range(1, length):
            same = tokens[at] == tokens[at - 1] + 1 or tokens[at] == tokens[at - 1] == PADDING
            assert positions[at] == (positions[at - 1] + 1 if same else 0) or positions[at] == 0
        assert positions[0] == 0


@given(sizes=texts, length=st.integers(2, 20), together=st.booleans())
@settings(max_examples=100, deadline=None)
def test_blocks_go_together_that_hold_parts_of_one_document_and_no_others(sizes, length, together):
    blocks = pack(documents(sizes), length, PADDING, together=together)
    assert np.array_equal(blocks.there, blocks.inputs[:, TOKENS] != PADDING)
    found = []  # sets of blocks and of what they hold, merged while any share a document
    for row, (tokens, there) in enumerate(zip(blocks.inputs[:, TOKENS], blocks.there, strict=True)):
        rows, held = {row}, set(np.searchsorted(np.cumsum(sizes), tokens[there], side="right").tolist())
        for other in [one for one in found if one[1] & held]:
            found.remove(other)
            rows, held = rows | other[0], held | other[1]
        found.append((rows, held))
    said = {frozenset(np.flatnonzero(blocks.groups == group).tolist()) for group in blocks.groups}
    assert said == {frozenset(rows) for rows, _ in found}


@given(sizes=st.lists(st.integers(1, 16), max_size=30))
@settings(max_examples=60, deadline=None)
def test_groups_fit_and_no_two_of_them_would_fit_together_twice_over(sizes):
    groups = fit(sizes, 16)
    assert sorted(at for group in groups for at in group) == list(range(len(sizes)))
    filled = sorted(sum(sizes[at] for at in group) for group in groups)
    assert all(total <= 16 for total in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > 16  # best fit leaves no two half-empty groups


def test_learned_marks_count_for_the_token_that_is_predicted():
    (piece,) = parts(Document(np.array([5, 6, 7, 8]), np.array([True, False, True, True])), 8, part=True)
    assert piece.tokens.tolist() == [5, 6, 7]
    assert piece.targets.tolist() == [IGNORED, 7, 8]


@pytest.mark.parametrize(("part", "pieces"), [(True, [[0, 1, 2], [3, 4, 5], [6]]), (False, [[0, 1, 2]])])
def test_a_long_document_is_parted_or_loses_its_end(part, pieces):
    document = Document(np.arange(8))
    assert [piece.tokens.tolist() for piece in parts(document, 3, part=part)] == pieces
    assert pack([document], 3, PADDING, part=part).cut == 1


def test_blocks_with_nothing_to_learn_are_left_out():
    nothing = Document(np.arange(4), np.zeros(4, bool))
    assert len(pack([nothing, Document(np.arange(1)), Document(np.arange(0))], 4, PADDING).targets) == 0
    assert len(pack([nothing, Document(np.arange(3))], 4, PADDING).targets) == 1
