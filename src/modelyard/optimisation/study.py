"""What a teacher was worth: the teacher, the student it taught and its control, on the same rows. Called by `optimise` for the
select split, and for the report split at the very end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.engines.torch import TorchEngine
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluate import drop, score
from modelyard.optimisation.examples import Examples
from modelyard.optimisation.steps.distil import Lesson
from modelyard.optimisation.variants import Subject
from modelyard.tensors import Array

NAMES = ("teacher", "distilled", "control")


def study(
    subject: Subject, lesson: Lesson, examples: Examples, config: OptimiseConfig, kept: Array | None = None
) -> dict[str, Any]:
    """By name the score of each with its interval, and `gain`: what the distilled student is better than its control by, in
    points, with the interval of paired rows. Students as they were right after the lesson, in float. `kept`:
    BOOL [rows], those that count (all, where it is None)."""
    source, metric = subject.source, subject.source.metric
    engines = (subject.engine, *(TorchEngine.of(network, subject.card) for network in (lesson.distilled, lesson.control)))
    kept = np.ones(len(examples.wanted), bool) if kept is None else kept
    wanted = examples.wanted[kept]
    answers = {name: source.predict(engine, examples.inputs)[kept] for name, engine in zip(NAMES, engines, strict=True)}
    scores = {
        name: score(predicted, wanted, metric, config.confidence, config.seed).to_json() for name, predicted in answers.items()
    }
    gain = drop(answers["distilled"], answers["control"], wanted, metric, config.confidence, config.seed)
    against = "the same student from random weights" if metric == "spearman" else "the same student from scratch"
    return {"rows": len(wanted), **scores, "gain": gain.to_json(), "against": against}
