"""A hundred processes of a working platform are killed, ten between two looks at everything: `make soak`.

The seed is printed; the environment's KILLS_SEED plays the same kills again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kill_tools import ordeal, seed_of


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    assert ordeal(tmp_path, seed_of(os.environ.get("KILLS_SEED")), storms=10, kills=10) > 0
