"""`make soak`: a hundred processes of a working platform are killed, ten between two looks at everything; control is dead for a
minute.

The seed is printed; the environment's KILLS_SEED plays the same kills again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kill_outage import Serving, outage
from kill_processes import Platform
from kill_tools import ordeal, seed_of

from modelyard.settings import Settings


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    assert ordeal(tmp_path, seed_of(os.environ.get("KILLS_SEED")), storms=10, kills=10) > 0


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("grace", [None, 120.0])
def test_control_is_dead_for_a_minute(tmp_path: Path, grace: float | None) -> None:
    """With the grace of the settings' default calls are refused after it, with a longer one none is."""
    platform = Platform(tmp_path / "yard", **({} if grace is None else {"MODELYARD_GRACE": str(grace)}))
    try:
        platform.start()
        outage(Serving(platform, tmp_path), seconds=60, grace=grace or Settings.model_fields["grace"].default)
    finally:
        platform.close()
