from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_networks import context, subject

from modelyard.engines.torch import load_module
from modelyard.optimisation.chain import make
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.steps.distil import Lesson
from modelyard.optimisation.study import study


def test_a_taught_network_beats_one_that_learned_nothing(tmp_path: Path) -> None:
    found = subject(tmp_path)
    config = OptimiseConfig(steps=["finetune:epochs=6", "prune:channels=0.25", "distil:epochs=6,alpha=0.1"])
    lesson = make(found, config, context(tmp_path)).lesson
    assert lesson is not None
    fresh = load_module(found.folder, found.card)
    told = study(found, Lesson(lesson.distilled, fresh), found.select, config)
    assert told["rows"] == 120
    assert told["against"] == "the same student from scratch"
    assert told["control"] == told["teacher"]  # the version has learned nothing yet
    half = study(found, Lesson(lesson.distilled, fresh), found.select, config, np.arange(120) < 60)
    assert half["rows"] == 60
    labels = found.source.predict(found.engine, found.select.inputs)[:60]
    assert half["teacher"]["value"] == pytest.approx(np.mean(labels == found.select.wanted[:60]))
    assert told["gain"]["low"] > 5
    assert told["gain"]["value"] == pytest.approx(100 * (told["distilled"]["value"] - told["control"]["value"]))
    assert told["distilled"]["low"] < told["distilled"]["value"] < told["distilled"]["high"]
