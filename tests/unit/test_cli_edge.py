from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main

from modelyard import errors
from modelyard.cli import edge, main
from modelyard.cli.screen import Left

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_DATA", str(tmp_path))
    monkeypatch.delenv("MODELYARD_URL", raising=False)
    monkeypatch.delenv("MODELYARD_KEY", raising=False)


def commands() -> Iterator[tuple[str, object]]:
    root = typer.main.get_command(edge.assemble())
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        for below, inner in getattr(command, "commands", {"": command}).items():
            yield f"{name} {below}".strip(), inner


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_answers_in_json_and_takes_a_data_folder(name: str, command: typer.core.TyperCommand) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--data"} <= options
    assert command.help, f"{name} has no help"


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_help_shows_no_types_of_python_and_ends_its_sentences(name: str, command: typer.core.TyperCommand) -> None:
    for parameter in command.get_params(typer.Context(command)):
        assert parameter.metavar is not None, f"{name}: {parameter.name}"
        assert not isinstance(parameter, typer.core.TyperArgument) or parameter.metavar.isupper()
        text = getattr(parameter, "help", None) or ""
        assert text.endswith("."), f"{name}: {parameter.name}: {text}"
        assert not isinstance(parameter.show_default, str), "typer shows such a default in brackets"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_is_on_the_page(name: str, command: typer.core.TyperCommand) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert f"`{name}" in page
    missing = [o for p in command.params for o in p.opts if o.startswith("--") and o not in page]
    assert not missing, f"{name}: {missing} are not in docs/cli.md"


def test_no_platform_is_one_line_and_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: No platform is known")
    assert said.err.count("\n") == 1


def test_errors_are_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--json"]) == 5
    said = capsys.readouterr()
    assert set(json.loads(said.out)["error"]) == {"code", "message"}
    assert json.loads(said.out)["error"]["code"] == "unavailable"
    assert said.err == ""


@pytest.mark.parametrize(
    "line",
    [["nonsense"], ["model", "import"], ["optimize", "m", "--goal", "beauty"], ["train", "m"], ["up", "--port", "70000"]],
)
def test_wrong_usage_is_exit_code_2_and_says_where_help_is(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    assert "--help`" in capsys.readouterr().err
    assert main([*line, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_a_misspelt_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "'train'" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile.json").write_text('{"url": "http://127.0.0.1:9", "key": "my_k", "project": "default"}')
    assert main(["dataset", "import", "d", "--from", "nowhere.csv"]) == 6
    assert "'nowhere.csv'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Unauthorized(), 3),
        (errors.Forbidden(), 3),
        (errors.NotFound(), 4),
        (errors.Unavailable(), 5),
        (errors.TimedOut(), 5),
        (errors.Unsafe(), 6),
        (errors.Conflict(), 6),
        (errors.Crashed(), 1),
        (errors.Internal(), 1),
    ],
)
def test_exit_codes_follow_the_class_of_the_error(error: errors.ModelyardError, code: int) -> None:
    assert edge.exit_code(error) == code


def test_what_nobody_expected_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(edge, "assemble", lambda asked: broken)
    assert main(["ps", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "internal"
    kept = Path(error["message"].split(" in ")[-1].rstrip("."))
    assert "RuntimeError: a bug" in kept.read_text()
    kept.unlink()


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(edge, "assemble", lambda asked: interrupted)
    assert main(["ps"]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_whoever_leaves_is_told_what_that_means(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def left(*_: object, **__: object) -> None:
        raise Left("interrupted", "The job goes on.", 130)

    monkeypatch.setattr(edge, "assemble", lambda asked: left)
    assert main(["ps"]) == 130
    assert capsys.readouterr() == ("", "The job goes on.\n")
    assert main(["ps", "--json"]) == 130
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": {"code": "interrupted", "message": "The job goes on."}}
    assert said.err == ""


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    assert "Build models" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [*edge.COMMANDS, *edge.GROUPS])
def test_what_is_asked_for_is_assembled_alone_and_as_in_the_whole(asked: str) -> None:
    whole, alone = (typer.main.get_command(edge.assemble(only)).commands for only in ("", asked))  # type: ignore[attr-defined]
    assert list(alone) == [asked]
    assert [p.opts for p in alone[asked].params] == [p.opts for p in whole[asked].params]
    assert list(getattr(alone[asked], "commands", ())) == list(getattr(whole[asked], "commands", ()))


def test_a_command_that_is_none_is_told_beside_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploi"]) == 2
    assert "deploy" in capsys.readouterr().err
