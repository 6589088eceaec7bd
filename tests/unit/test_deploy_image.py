"""The Dockerfile: it takes what is there, and agrees with the package, the command line and the manifests."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer
import yaml

from modelyard.app.control import OPEN
from modelyard.cli.edge import assemble
from modelyard.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """Each with its arguments on one line, comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


STEPS = instructions()


def given(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def copied() -> list[str]:
    """What is taken from the tree."""
    return [source for rest in given("COPY") if "--from" not in rest for source in shlex.split(rest)[:-1]]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_all_that_is_written_is_an_instruction() -> None:
    known = {"FROM", "ARG", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in STEPS} <= known
    assert STEPS[0][0] == "FROM"


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_is_there_and_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    ignored = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#") and fnmatch(source, rule.removeprefix("!")):
            ignored = not rule.startswith("!")
    assert not ignored


def test_what_is_ignored_is_everything_else() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(copied())


def test_everything_that_the_package_is_built_from_is_copied() -> None:
    wanted = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt", "src"}
    assert set(copied()) == wanted


def test_both_stages_have_one_python_which_the_package_takes() -> None:
    images = {rest.split(" ")[0] for rest in given("FROM")}
    (found,) = (re.fullmatch(r"python:(\d+)\.(\d+)-slim-[a-z]+", image) for image in images)
    assert found is not None
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert (int(found[1]), int(found[2])) >= least


def test_extras_are_chosen_at_build_and_pinned() -> None:
    (extras,) = (rest.partition("=")[2] for rest in given("ARG") if rest.startswith("EXTRAS="))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (install,) = (rest for rest in given("RUN") if "pip install" in rest)
    words = shlex.split(install)
    assert words[-1] == ".[${EXTRAS}]"
    assert option(words, "--constraint") == "constraints.txt"
    assert option(words, "--extra-index-url") == "${TORCH_INDEX}"


def test_the_image_has_ray_and_the_version_that_is_pinned() -> None:
    """The nodes of the cluster are made of it."""
    everything = PROJECT["optional-dependencies"]["all"][0]
    assert "ray" in re.fullmatch(r"modelyard\[(.+)\]", everything)[1].split(",")  # type: ignore[index]


def test_it_starts_a_platform_that_is_reached_from_outside() -> None:
    entry, command = (json.loads(given(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[-1] in PROJECT["scripts"]
    started = typer.main.get_command(assemble()).commands[command[0]]  # type: ignore[attr-defined]
    assert set(command[1::2]) <= {parameter.opts[0] for parameter in started.params}
    values = dict(zip(command[1::2], command[2::2], strict=True))
    assert given("EXPOSE") == [values["--port"]]
    assert given("VOLUME") == [values["--data"]]
    assert values["--host"] == "0.0.0.0"
    env = dict(word.split("=", 1) for word in shlex.split(given("ENV")[0]))
    assert env["MODELYARD_DATA"] == values["--data"]
    assert {name.removeprefix("MODELYARD_").lower() for name in env if name.startswith("MODELYARD_")} <= set(
        Settings.model_fields
    )
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    (check,) = given("HEALTHCHECK")
    asked = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)'", check)
    assert asked is not None
    assert asked[1] == values["--port"]
    assert asked[2] in OPEN


def test_it_runs_as_the_user_of_the_manifests() -> None:
    (user,) = given("USER")
    pod = next(yaml.safe_load_all((ROOT / "deploy/kuberay/platform.yaml").read_text()))["spec"]["template"]["spec"]
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert pod["containers"][0]["args"][:7] == json.loads(given("CMD")[0])
    (setup,) = (rest for rest in given("RUN") if "useradd" in rest)
    assert f"--uid {user.partition(':')[0]} " in setup
    assert "bubblewrap" in setup
