from __future__ import annotations

import pytest

from modelyard.cli.serving import deployed, numbered


@pytest.mark.parametrize(
    ("state", "asked", "meant", "text"),
    [
        ("ready", "m@3", "m@3", "d serves m@3 (ready)"),
        ("pending", "m@3", "m@3", "d will serve m@3 (pending)"),
        ("ready", "m", "m@best", "d serves m@3 (ready); m was taken for m@best"),
        ("ready", "m", "m@3", "d serves m@3 (ready); m was taken for its newest version"),
    ],
)
def test_deploy_says_what_was_taken(state: str, asked: str, meant: str, text: str) -> None:
    assert deployed({"name": "d", "model": "m@3", "state": state}, asked, meant) == text


def test_versions_are_numbers_as_in_the_catalogue() -> None:
    shown = numbered({"name": "d", "version": "3", "replicas": [{"token": "r", "version": "2"}]})
    assert (shown["version"], shown["replicas"][0]["version"]) == (3, 2)
