"""The sandbox's argument list: what is shown, how, and what never is."""

from pathlib import Path

import pytest

from modelyard.errors import Unavailable
from modelyard.jobs import sandbox
from modelyard.settings import Settings


def build(**given: object) -> list[str]:
    whole = {"readonly": [], "writable": [], "environment": {}, "folder": Path("/w"), **given}
    return sandbox.command(["prog", "--flag"], **whole)  # type: ignore[arg-type]


def binds(argv: list[str]) -> dict[str, str]:
    """Path inside → how it is bound."""
    return {argv[n + 2]: word for n, word in enumerate(argv) if "bind" in word}


def test_the_program_comes_last_in_its_folder() -> None:
    assert build()[-5:] == ["--chdir", "/w", "--", "prog", "--flag"]


@pytest.mark.parametrize(
    "flag",
    ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session", "--clearenv"],
)
def test_it_is_cut_off_by_default(flag: str) -> None:
    assert flag in build()
    argv = build()
    assert argv[argv.index("--cap-drop") + 1] == "ALL"


def test_what_of_the_kernel_root_may_write_to_is_readonly() -> None:
    argv = build()
    assert binds(argv)["/proc/sys"] == "--ro-bind-try"
    assert argv.index("/proc/sys") > argv.index("--proc")


def test_the_first_process_is_the_program_where_that_is_asked_for() -> None:
    assert "--as-pid-1" in build(first=True)
    assert "--as-pid-1" not in build()


def test_the_network_is_a_grant() -> None:
    assert "--unshare-net" not in build(network=True)
    assert "--unshare-pid" in build(network=True)


def test_folders_are_shown_at_their_own_paths_inner_ones_after_outer() -> None:
    argv = build(readonly=[Path("/a/b/c"), Path("/z")], writable=[Path("/a/b")])
    shown = binds(argv)
    assert (shown["/z"], shown["/a/b"], shown["/a/b/c"]) == ("--ro-bind", "--bind", "--ro-bind")
    assert argv.index("/a/b") < argv.index("/a/b/c")


def test_what_is_both_is_writable() -> None:
    assert binds(build(readonly=[Path("/a")], writable=[Path("/a")]))["/a"] == "--bind"


def test_of_the_system_only_the_readonly_and_harmless_is_shown() -> None:
    shown = binds(build())
    assert set(shown.values()) == {"--ro-bind-try"}
    assert not [p for p in shown if p in ("/", "/etc", "/home", "/root", "/var", "/run", "/tmp") or "shadow" in p]


def test_everything_that_can_be_written_in_memory_is_bounded_where_possible() -> None:
    argv = build()
    for path in ("/tmp", "/dev/shm"):
        assert argv[argv.index(path) - 3 : argv.index(path)] == ["--size", str(2 << 30), "--tmpfs"]
    assert "--size" not in build(sized=False)
    assert [argv[n + 1] for n, word in enumerate(argv) if word == "--remount-ro"] == ["/dev", "/"]


def test_the_environment_is_exactly_what_is_given() -> None:
    argv = build(environment={"B": "2", "A": "1 = x"})
    assert argv[argv.index("--clearenv") :][:7] == ["--clearenv", "--setenv", "A", "1 = x", "--setenv", "B", "2"]


def test_devices_are_shown_as_devices() -> None:
    assert binds(build(devices=[Path("/dev/nvidia0")]))["/dev/nvidia0"] == "--dev-bind-try"


def test_the_interpreter_is_found_through_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, alias, venv = (tmp_path / name for name in ("python-3.11.7", "python-3.11", "venv"))
    for folder in (real / "bin", venv / "bin"):
        folder.mkdir(parents=True)
    (real / "bin" / "python3").touch()
    alias.symlink_to(real)
    (venv / "bin" / "python").symlink_to(alias / "bin" / "python3")
    for name, value in (("prefix", venv), ("base_prefix", real), ("exec_prefix", venv), ("base_exec_prefix", real)):
        monkeypatch.setattr(sandbox.sys, name, str(value))
    monkeypatch.setattr(sandbox.sys, "executable", str(venv / "bin" / "python"))
    assert set(sandbox.interpreter()) == {real, alias, venv, Path(sandbox.modelyard.__file__).parent}


def test_a_system_python_needs_no_further_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prefix", "base_prefix", "exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sandbox.sys, name, "/usr")
    monkeypatch.setattr(sandbox.sys, "executable", "/usr/bin/python-that-is-no-link")
    assert sandbox.interpreter() == [Path(sandbox.modelyard.__file__).parent]


@pytest.mark.parametrize(("mode", "works", "used"), [("auto", True, True), ("auto", False, False), ("off", True, False)])
def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch, mode: str, works: bool, used: bool) -> None:
    monkeypatch.setattr(sandbox, "available", lambda: works)
    assert sandbox.wanted(mode) is used


def test_a_missing_sandbox_is_refused_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "available", lambda: False)
    with pytest.raises(Unavailable, match="docs/sandbox"):
        sandbox.wanted("require")


@pytest.mark.parametrize(
    ("mode", "works", "says"),
    [
        ("auto", False, "bubblewrap does not run here"),
        ("off", True, "the setting sandbox is 'off'"),
        ("auto", True, None),
        ("require", False, None),
    ],
)
def test_the_warning_of_going_without(monkeypatch: pytest.MonkeyPatch, mode: str, works: bool, says: str | None) -> None:
    monkeypatch.setattr(sandbox, "available", lambda: works)
    said = sandbox.warning(Settings(sandbox=mode))
    assert said is None if says is None else said is not None and says in said


def test_going_without_is_said_loudly_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox._warn.cache_clear()
    monkeypatch.setattr(sandbox, "available", lambda: False)
    sandbox.wanted("auto")
    sandbox.wanted("auto")
    said = "".join(capsys.readouterr())
    assert said.count("NO SANDBOX") == 1
    sandbox._warn.cache_clear()
