"""What figures are counted in, by the metric they are of: for verdicts, reports and the command line. It loads nothing."""

from __future__ import annotations


def units(metric: str) -> tuple[str, str]:
    """Of what is lost, and of what is answered in a second."""
    return ("percent", "tokens/s") if metric == "perplexity" else ("points", "rows/s")


def counted(metric: str) -> tuple[str, str]:
    """What evidence is counted in, and what of a split is left out."""
    return ("independent blocks", "texts") if metric == "perplexity" else ("rows", "rows")
