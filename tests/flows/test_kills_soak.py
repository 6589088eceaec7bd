"""`make soak`: a hundred processes of a working platform are killed, ten between two looks at everything; control is dead for a
minute, or is killed again and again under one training.

The run's header tells the seed; the environment's KILLS_SEED plays the same kills again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_outage import Serving, outage
from kill_processes import Platform, until
from kill_tools import ordeal
from kill_work import TRAINING, insist, scene, weights

from modelyard.settings import Settings


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path, seed: int) -> None:
    found = ordeal(tmp_path, seed, storms=10, kills=10)
    assert found.resumed > 0
    assert min(found.amid.values()) > 0, f"some kind of work was never in progress: {dict(found.amid)}"


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("grace", [None, 120.0])
def test_control_is_dead_for_a_minute(tmp_path: Path, grace: float | None) -> None:
    """With the grace of the settings' default calls are refused after it, with a longer one none is."""
    platform = Platform(tmp_path / "yard", **({} if grace is None else {"MODELYARD_GRACE": str(grace)}))
    try:
        platform.start()
        serving = Serving(platform, tmp_path)
        outage(serving, seconds=60, grace=grace or Settings.model_fields["grace"].default)
        serving.close()
    finally:
        platform.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_control_is_killed_four_times_during_one_training(tmp_path: Path) -> None:
    """No restart is allowed to the job, and it needs none; its weights are those of an undisturbed one."""
    with scene(tmp_path, MODELYARD_JOB_RESTARTS="0") as stage, stage.platform.yard() as yard:
        job = yard.train("twin", "digits@1", ranks=2, wait=False, **TRAINING)["id"]

        def has_come_to(attempt: int) -> bool:
            found = insist(lambda: yard.job(job))
            progress = found["progress"] or {"done": 0, "total": 1}
            done = progress["done"] / progress["total"]
            assert found["state"] != "succeeded", found
            return found["state"] == "running" and found["attempt"] == attempt and done >= attempt / 8

        for attempt in range(1, 5):
            until(lambda n=attempt: has_come_to(n), 120, f"attempt {attempt} is under way")
            assert stage.platform.find("control")[0].kill()
        ended = insist(lambda: yard.wait(job))
        assert (ended["state"], ended["attempt"]) == ("succeeded", 5)
        assert weights(yard, "twin@1") == stage.weights
