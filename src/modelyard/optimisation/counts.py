"""Metrics of which each row gives counts and the whole is made of their sums: word error rate, BLEU, chrF and ROUGE-L of texts,
and how early embeddings find what belongs to a text. A score of all rows is no mean of theirs (BLEU), but rows that are drawn
again have sums as well. Called by `evaluate`; the libraries that count are loaded when one of these is asked for.

ROUGE-L is made here of rapidfuzz's longest common subsequence: the library rouge-score, last released in 2022, drops every
letter that is not one of a to z and brings NLTK.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from modelyard.plugins import load
from modelyard.tensors import Array

_SACREBLEU = {"bleu": "sacrebleu.metrics:BLEU", "chrf": "sacrebleu.metrics:CHRF"}
_FIRST = {"recall@1": 1, "recall@10": 10}
_NO_LETTERS = frozenset("PSZC")  # first letters of Unicode's categories: punctuation, symbols, separators, control


def counts(answered: Array, wanted: Array, metric: str) -> Array:
    """FP64 [rows, counts]: what each row adds to the sums. `answered`, `wanted`: texts, object arrays of `str` [rows]; for
    `mrr` and `recall@…` `answered` is 1 by the place of the right one, FP64 [rows], and `wanted` is not looked at."""
    if metric in _SACREBLEU:
        rows = _sacrebleu(metric)._extract_corpus_statistics(answered.tolist(), [wanted.tolist()])
    elif metric in ("wer", "rouge"):
        count = _word_errors if metric == "wer" else _rouge_l
        rows = [count(one, two) for one, two in zip(answered, wanted, strict=True)]
    else:
        found = answered if metric == "mrr" else answered * _FIRST[metric] > 1 - 1e-9
        rows = np.stack([found, np.ones(len(found))], axis=1)
    return np.asarray(rows, np.float64)


def of_sums(sums: Array, metric: str) -> float:
    """The metric, from the sum of rows' counts. WER: errors a word that was wanted (as jiwer: the errors, where none was); BLEU
    (K. Papineni et al., 2002) and chrF (M. Popović, 2015) by sacrebleu, 0 to 1; ROUGE-L (C.-Y. Lin, 2004) and retrieval: the
    mean of the rows."""
    if metric in _SACREBLEU:
        return float(_sacrebleu(metric)._compute_score_from_stats(sums.tolist()).score) / 100
    return float(sums[0] / max(1.0, sums[1]))


def scorer(models: Sequence[Array], wanted: Array, metric: str) -> Callable[[Array], Array]:
    """The metric of each model, FP64 [models], over rows that may be there several times: INT64, positions of rows."""
    counted = [counts(answered, wanted, metric) for answered in models]

    def scored(drawn: Array) -> Array:
        times = np.bincount(drawn, minlength=len(wanted)).astype(np.float64)
        return np.array([of_sums(times @ one, metric) for one in counted])

    return scored


def heaviest(answered: Array, wanted: Array, metric: str) -> float:
    """The largest part of the whole that one row is, 0 to 1 and of texts of a model that never ends more: by the words or
    letters that are wanted, or answered where those are more (WER: or wrong); of means 1 in all rows."""
    found = counts(answered, wanted, metric)
    return float(found[:, :2].max() / max(1.0, found[:, 1].sum()))


def words(text: str) -> list[str]:
    """What whitespace, punctuation and symbols part, in lower case."""
    kept = (" " if unicodedata.category(letter)[0] in _NO_LETTERS else letter for letter in text.casefold())
    return "".join(kept).split()


def _word_errors(answered: str, wanted: str) -> tuple[int, int]:
    """Words put in, left out or changed, and words wanted: as they stand, parted by any whitespace."""
    found = load("jiwer:process_words")(" ".join(wanted.split()), " ".join(answered.split()))
    kept = found.substitutions + found.deletions
    return kept + found.insertions, kept + found.hits


def _rouge_l(answered: str, wanted: str) -> tuple[float, float]:
    """F1 of the longest common subsequence of words: 1 where both have none."""
    one, two = words(answered), words(wanted)
    common = load("rapidfuzz.distance:LCSseq").similarity(one, two)
    return (2 * common / (len(one) + len(two)) if one or two else 1.0), 1.0


@lru_cache
def _sacrebleu(metric: str) -> Any:
    """With the library's own settings: BLEU of words as mteval's 13a cuts them, chrF of six letters. Its statistics of a row
    are what its own significance tests draw again."""
    made = load(_SACREBLEU[metric])
    return made(force=True) if metric == "bleu" else made()
