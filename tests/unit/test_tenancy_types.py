"""Scopes nest, and what is asked over the wire is checked."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelyard.tenancy.types import CreatedKey, KeyRequest, ProjectRequest, Scope


def test_scopes_nest():
    assert Scope.admin > Scope.write > Scope.infer


def test_a_created_key_is_shown_as_the_protocol_says():
    assert CreatedKey("abc", "my_abc_def", Scope.write).to_json() == {"id": "abc", "key": "my_abc_def", "scope": "write"}


@pytest.mark.parametrize("name", ["default", "a", "team-7_x", "0" * 63])
def test_project_names(name: str):
    assert ProjectRequest(name=name).name == name


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a/b", "../a", "a b", "ä", "a\n", "a\x00", "a" * 64])
def test_wrong_project_names(name: str):
    with pytest.raises(ValidationError):
        ProjectRequest(name=name)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": "root"},
        {"scope": 3},
        {"scope": "infer", "expires": 0},
        {"scope": "infer", "expires": 1e300},
        {"scope": "infer", "x": 1},
    ],
)
def test_wrong_key_requests(body: dict):
    with pytest.raises(ValidationError):
        KeyRequest.model_validate(body)
