"""What `up` starts for a cluster; that it works is for the flows."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from modelyard.app import cluster
from modelyard.errors import Unavailable
from modelyard.jobs import ray
from modelyard.settings import Settings


def settings(tmp_path: Path, where: str) -> Settings:
    return Settings(data=tmp_path / "yard", cluster=where, job_cpus=3)


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize("where", ["", "ray://head:10001"])
def test_where_there_is_no_cluster_or_another_is_in_between_nothing_is_started(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: name)  # as if Ray's client were installed
    chosen = settings(tmp_path, where)
    assert cluster.join(chosen, tmp_path) == cluster.Joined(chosen)


def test_an_address_for_rays_client_is_refused_where_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"ray://head:10001, which Ray's client.*pip install 'ray\[client\]', or .*HOST:PORT"):
        cluster.join(settings(tmp_path, "ray://head:10001"), tmp_path)


def test_its_own_cluster_listens_on_loopback_and_asks_for_a_token(tmp_path: Path) -> None:
    joined = cluster.join(settings(tmp_path, "ray"), tmp_path)
    assert joined.settings.cluster == f"127.0.0.1:{value(joined.argv, '--port')}"
    assert value(joined.argv, "--node-ip-address") == "127.0.0.1"
    assert (value(joined.argv, "--num-cpus"), value(joined.argv, "--include-dashboard")) == ("3", "false")
    assert {"--head", "--block", "--disable-usage-stats"} <= set(joined.argv)
    assert joined.environment["RAY_AUTH_MODE"] == "token"
    token = Path(joined.environment["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    again = cluster.join(settings(tmp_path, "ray"), tmp_path)
    assert Path(again.environment["RAY_AUTH_TOKEN_PATH"]).read_text() == token.read_text()


def test_a_token_that_could_not_be_written_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            cluster.join(settings(tmp_path, "ray"), tmp_path)
    token = Path(cluster.join(settings(tmp_path, "ray"), tmp_path).environment["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64


def test_of_another_cluster_this_machine_becomes_a_node_that_gives_no_processors(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "10.0.0.5:6379")
    joined = cluster.join(chosen, tmp_path)
    assert joined.settings == chosen
    assert (value(joined.argv, "--address"), value(joined.argv, "--num-cpus")) == ("10.0.0.5:6379", "0")
    assert not {"--head", "--node-ip-address"} & set(joined.argv)
    assert "RAY_AUTH_TOKEN_PATH" not in joined.environment
    assert value(cluster.join(settings(tmp_path, "127.0.0.2:6379"), tmp_path).argv, "--node-ip-address") == "127.0.0.2"


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"modelyard\[ray\]"):
        cluster.join(settings(tmp_path, "ray"), tmp_path)
