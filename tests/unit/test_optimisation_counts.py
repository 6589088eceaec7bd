"""Counts of rows: their sums give what the libraries say of the whole, also where rows are there several times."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.optimisation.counts import counts, heaviest, of_sums, scorer, words
from modelyard.optimisation.evaluate import agreement, drop, score, worth

WORDS = st.sampled_from(["the", "The", "cat", "cats,", "of", "Rome", "ist", "grün", "नमस्ते", "1.5", "-", "猫"])
TEXT = st.lists(WORDS, max_size=9).map(" ".join)
ROWS = st.lists(st.tuples(TEXT, TEXT, st.integers(0, 3)), min_size=1, max_size=8).filter(lambda rows: any(n for *_, n in rows))


def columns(rows) -> tuple[np.ndarray, np.ndarray, list[int]]:
    answered, wanted, times = zip(*rows, strict=True)
    return np.array(answered, object), np.array(wanted, object), list(times)


def rouge_l(answered: str, wanted: str) -> float:
    """By the table of C.-Y. Lin, 2004, section 3."""
    one, two = words(answered), words(wanted)
    table = np.zeros((len(one) + 1, len(two) + 1))
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return 2 * table[-1, -1] / (len(one) + len(two)) if one or two else 1.0


def whole(metric: str, answered: list[str], wanted: list[str]) -> float:
    if metric == "wer":
        return jiwer.wer(wanted, answered)
    if metric == "rouge":
        return float(np.mean([rouge_l(*pair) for pair in zip(answered, wanted, strict=True)]))
    by = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[metric]
    return by(answered, [wanted]).score / 100


@pytest.mark.parametrize("metric", ["wer", "bleu", "chrf", "rouge"])
@given(ROWS)
def test_sums_are_the_librarys_score_of_the_whole(metric: str, rows) -> None:
    answered, wanted, times = columns(rows)
    assert worth(answered, wanted, metric) == pytest.approx(whole(metric, answered.tolist(), wanted.tolist()))
    drawn = np.repeat(np.arange(len(rows)), times)
    again = whole(metric, answered[drawn].tolist(), wanted[drawn].tolist())
    assert scorer([answered], wanted, metric)(drawn) == pytest.approx([again])


@given(ROWS)
def test_what_is_as_wanted_is_perfect(rows) -> None:
    _, wanted, _ = columns(rows)
    assert worth(wanted, wanted, "wer") == 0
    assert worth(wanted, wanted, "rouge") == worth(wanted, wanted, "accuracy") == agreement(wanted, wanted, "chrf") == 1
    if any(len("".join(text.split())) >= 6 for text in wanted):
        assert worth(wanted, wanted, "chrf") == pytest.approx(1)


def test_words_are_of_any_script() -> None:
    assert words("Ein grüner—„Käse“ (für 1.5 €)!\n") == ["ein", "grüner", "käse", "für", "1", "5"]
    assert words("नमस्ते दुनिया।") == ["नमस्ते", "दुनिया"]


def test_errors_are_lost_where_there_are_more_of_them_and_bleu_is_no_mean_of_rows() -> None:
    """Six words of which one is wrong, beside none of three: one of nine, not a mean of 1/6 and 0."""
    wanted = np.array(["the cat sat on the mat", "it was red"], object)
    worse = np.array(["the cat sat on a mat", "it was red"], object)
    assert worth(worse, wanted, "wer") == pytest.approx(1 / 9)
    lost = drop(wanted, worse, wanted, "wer")
    assert (lost.value, lost.low, lost.high) == pytest.approx((100 / 9, 0, 100 / 6))
    assert drop(worse, wanted, wanted, "wer").value == pytest.approx(-100 / 9)
    assert drop(wanted, worse, wanted, "bleu").value == pytest.approx(
        100 * (1 - whole("bleu", worse.tolist(), wanted.tolist()))
    )
    rows = [whole("bleu", [one], [two]) for one, two in zip(worse, wanted, strict=True)]
    assert worth(worse, wanted, "bleu") != pytest.approx(np.mean(rows), abs=0.01)


@pytest.mark.parametrize("metric", ["wer", "bleu", "chrf", "rouge"])
def test_the_interval_of_the_paired_drop_covers_the_truth(metric: str) -> None:
    """Rows of ten words; the variant has every tenth word wrong more than the original. The truth is that of 4,000 rows."""
    random = np.random.default_rng(0)

    def said(rows: int, wrong: float, truth: np.ndarray) -> np.ndarray:
        changed = random.random((rows, 10)) < wrong
        return np.array([" ".join(row) for row in np.where(changed, "wrong", truth)], object)

    def drawn(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        truth = random.choice([f"word{n}" for n in range(500)], (rows, 10))
        return said(rows, 0.1, truth), said(rows, 0.2, truth), said(rows, 0, truth)

    one, two, wanted = drawn(4000)
    true = 100 * abs(worth(one, wanted, metric) - worth(two, wanted, metric))
    covered = 0
    for _ in range(12):
        found = drop(*drawn(100), metric, 0.9)
        covered += found.low <= true <= found.high
    assert covered >= 8


def test_places_are_told_as_the_mean_of_one_by_place_and_as_shares_of_early_ones() -> None:
    places = np.array([1, 2, 10, 11])
    nothing = np.array(["a", "b", "c", "d"], object)
    assert worth(1 / places, nothing, "mrr") == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 4)
    assert (worth(1 / places, nothing, "recall@1"), worth(1 / places, nothing, "recall@10")) == (1 / 4, 3 / 4)
    assert counts(1 / places, nothing, "recall@10")[:, 0].tolist() == [1, 1, 1, 0]


def test_nothing_wanted_has_errors_and_no_share() -> None:
    """As jiwer counts them."""
    assert of_sums(np.array([3.0, 0.0]), "wer") == 3 == jiwer.wer([""], ["a b c"])
    with pytest.raises(Invalid, match="the same rows"):
        score(np.array(["a"], object), np.array(["a", "b"], object), "wer")


def test_the_heaviest_row_is_the_longest_that_is_wanted_or_answered() -> None:
    wanted = np.array(["a b c d e f", "a b", "a b"], object)
    same = {metric: heaviest(wanted, wanted, metric) for metric in ("wer", "bleu", "chrf", "rouge")}
    assert same == pytest.approx({"wer": 0.6, "bleu": 0.6, "chrf": 0.6, "rouge": 1 / 3})
    endless = np.array(["a b c d e f", "a b" + " c" * 18, "a b"], object)
    assert heaviest(endless, wanted, "wer") == 1.8
    assert heaviest(endless, wanted, "bleu") == 2.0
    assert heaviest(np.array([1.0, 0.5]), wanted[:2], "mrr") == 0.5
