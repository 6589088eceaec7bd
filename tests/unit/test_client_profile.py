from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard.client import Yard, profile
from modelyard.errors import Invalid, Unauthorized, Unavailable

HERE, THERE = "http://127.0.0.1:8080", "https://models.example"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "profile.json").write_text(json.dumps({"url": HERE, "key": "my_profile", "project": "default"}))
    return tmp_path


def test_the_profile_is_used_where_nothing_else_is_said(data: Path) -> None:
    found = profile.find(data=data, environment={})
    assert (found.url, found.key, found.project, found.file) == (HERE, "my_profile", "default", data / "profile.json")


def test_the_data_folder_comes_from_flag_environment_default(tmp_path: Path) -> None:
    assert profile.data_folder(tmp_path, {"MODELYARD_DATA": "/elsewhere"}) == tmp_path
    assert profile.data_folder(None, {"MODELYARD_DATA": "/elsewhere"}) == Path("/elsewhere")
    assert profile.data_folder(None, {}) == Path.home() / ".modelyard"


def test_the_environment_overrides_the_profile(data: Path) -> None:
    found = profile.find(data=data, environment={"MODELYARD_URL": THERE + "/", "MODELYARD_KEY": "my_env"})
    assert (found.url, found.key, found.file) == (THERE, "my_env", None)


def test_arguments_override_the_environment(data: Path) -> None:
    found = profile.find(HERE, "my_arg", data, {"MODELYARD_URL": THERE, "MODELYARD_KEY": "my_env"})
    assert (found.url, found.key) == (HERE, "my_arg")


def test_a_key_in_the_environment_is_used_with_the_profile_s_url(data: Path) -> None:
    assert profile.find(data=data, environment={"MODELYARD_KEY": "my_env"}).key == "my_env"


@pytest.mark.parametrize("other", [THERE, "http://127.0.0.1:8081", "https://127.0.0.1:8080", "http://localhost:8080"])
def test_the_profile_s_key_never_goes_to_another_url(data: Path, other: str) -> None:
    with pytest.raises(Unauthorized, match="MODELYARD_KEY"):
        profile.find(data=data, environment={"MODELYARD_URL": other})
    with pytest.raises(Unauthorized):
        profile.find(other, data=data, environment={})


def test_a_key_in_the_environment_never_goes_to_another_url_than_its_own(data: Path) -> None:
    found = profile.find(HERE, data=data, environment={"MODELYARD_URL": THERE, "MODELYARD_KEY": "my_env"})
    assert found.key == "my_profile"


def test_the_same_origin_written_differently_is_the_same(data: Path) -> None:
    assert profile.find("HTTP://127.0.0.1:8080/", data=data, environment={}).key == "my_profile"
    assert profile.same_origin("https://a.example", "https://A.example:443/path")
    assert not profile.same_origin("https://a.example", "nonsense")


def test_no_platform_known_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="modelyard up"):
        profile.find(data=tmp_path, environment={})


@pytest.mark.parametrize("url", ["ftp://a.example", "127.0.0.1:8080", "http://", "http://a:port", "", "http://[::1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="URL"):
        profile.origin_of(url)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": "http://a"}', "\x00"])
def test_a_damaged_profile_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(Invalid, match=r"profile\.json"):
        profile.find(data=tmp_path, environment={})


def test_the_key_is_in_no_representation(data: Path) -> None:
    assert "my_profile" not in repr(profile.find(data=data, environment={}))
    with Yard(HERE, "my_secret", data) as yard:
        assert "my_secret" not in repr(yard)
