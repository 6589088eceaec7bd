"""What control is built on; that it runs is for the flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.app.control import executor
from modelyard.errors import Invalid
from modelyard.jobs.executor import LocalExecutor
from modelyard.settings import Settings


def test_without_a_cluster_it_runs_jobs_here(tmp_path: Path) -> None:
    made = executor(Settings(data=tmp_path))
    assert isinstance(made, LocalExecutor)
    made.close()


def test_a_cluster_of_its_own_is_not_for_control_alone(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"is for `modelyard up`; give control one that runs: --cluster HOST:PORT"):
        executor(Settings(data=tmp_path, cluster="ray"))
