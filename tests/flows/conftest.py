"""The seed of what is drawn at random in the flows: shown at the top of each run, also of one that passes. The environment's
KILLS_SEED plays the same again."""

from __future__ import annotations

import os
import random

import pytest

_NAME = "KILLS_SEED"


def pytest_configure(config: pytest.Config) -> None:
    if not os.environ.get(_NAME):
        os.environ[_NAME] = str(random.SystemRandom().randrange(1 << 31))  # which the workers of xdist inherit


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {_NAME}={os.environ[_NAME]} draws the same again"


@pytest.fixture(scope="session")
def seed() -> int:
    return int(os.environ[_NAME])
