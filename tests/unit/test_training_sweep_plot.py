"""The picture of a sweep: the same trials give the same bytes, whatever was searched."""

from pathlib import Path

from modelyard.training.sweep.plot import draw
from modelyard.training.sweep.space import parse
from modelyard.training.sweep.trials import Trial


def test_the_same_trials_give_the_same_picture(tmp_path: Path) -> None:
    space = parse("lr=1e-4..1e-1:log,optimiser=[adamw,sgd],epochs=1..3")
    trials = [
        Trial(
            n,
            {"lr": 10.0 ** -(n + 1), "optimiser": "sgd", "epochs": n + 1},
            state=state,
            curve={1: {"a": 0.1 * n}, 2: {"a": 0.5}},
        )
        for n, state in enumerate(("succeeded", "stopped", "failed"))
    ]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw(tmp_path / name, [*trials, Trial(3, {"lr": 0.1, "optimiser": "adamw", "epochs": 1})], space, "a", trials[0])
    for file in ("sweep.svg", "sweep.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "optimiser" in (tmp_path / "one" / "sweep.svg").read_text()
