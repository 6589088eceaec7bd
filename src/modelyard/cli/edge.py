"""The edge of the command line: assembles the groups, and turns every error into one line and an exit code.

0    done
1    failed: the platform, or the work it was asked to do; or the person said no
2    wrong usage of the command line
3    no valid API key, or its scope does not allow this
4    there is no such thing
5    no platform answers, it is not ready, or it took too long
6    the request was refused as it stands: invalid, too large, in conflict with what is there
130  interrupted (Ctrl-C); work on the platform goes on
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from modelyard import __version__
from modelyard.cli.help import plain
from modelyard.cli.screen import INTERRUPTED, Left, complain, note
from modelyard.errors import CallerError, Forbidden, Internal, ModelyardError, NotFound, TimedOut, Unauthorized, Unavailable
from modelyard.plugins import load

EXIT: Mapping[type[ModelyardError], int] = {
    Unauthorized: 3,
    Forbidden: 3,
    NotFound: 4,
    Unavailable: 5,
    TimedOut: 5,
    CallerError: 6,
    ModelyardError: 1,
}
RUN, BUILD, SERVE, LOOK, OWN = "Run a platform", "Build models", "Serve them", "Look", "Own and administer"
# Commands and groups in the order of `--help`: name → (panel, import path below `modelyard.cli`).
COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": (RUN, "processes:up"),
    "gateway": (RUN, "processes:gateway"),
    "control": (RUN, "processes:control"),
    "node": (RUN, "processes:node"),
    "migrate": (RUN, "processes:migrate"),
    "train": (BUILD, "train:train"),
    "optimize": (BUILD, "optimize:optimize"),
    "search": (BUILD, "search:search"),
    "bench": (BUILD, "bench:bench"),
    "evaluate": (BUILD, "evaluate:evaluate"),
    "reproduce": (BUILD, "reproduce:reproduce"),
    "deploy": (SERVE, "serving:deploy"),
    "predict": (SERVE, "serving:predict"),
    "promote": (SERVE, "serving:promote"),
    "rollback": (SERVE, "serving:rollback"),
    "undeploy": (SERVE, "serving:undeploy"),
    "ps": (LOOK, "jobs:ps"),
    "logs": (LOOK, "jobs:logs"),
    "stop": (LOOK, "jobs:stop"),
    "sweep": (LOOK, "sweep:sweep"),
    "receipt": (LOOK, "receipt:receipt"),
    "usage": (LOOK, "access:usage"),
    "whoami": (LOOK, "access:whoami"),
    "doctor": (LOOK, "processes:doctor"),
    "delete": (OWN, "catalogue:delete_any"),
}
GROUPS: Mapping[str, tuple[str, str]] = {
    "dataset": (BUILD, "catalogue:dataset"),
    "model": (BUILD, "catalogue:model"),
    "deployment": (SERVE, "serving:deployment"),
    "job": (LOOK, "job:job"),
    "key": (OWN, "access:key"),
    "project": (OWN, "access:project"),
}


def assemble(asked: str = "") -> typer.Typer:
    """The command line; where `asked` is the name of a command or group with that one alone, so that no other is loaded."""
    app = typer.Typer(
        name="modelyard",
        help="AI models as shared services on machines you own: train, optimise, deploy, infer.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 key, 4 not found, 5 not available, 6 refused, 130 interrupted.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, (panel, path) in _wanted(COMMANDS, asked).items():
        app.command(name, rich_help_panel=panel)(load(f"modelyard.cli.{path}"))
    for panel, path in _wanted(GROUPS, asked).values():
        group = load(f"modelyard.cli.{path}")
        app.add_typer(group, rich_help_panel=panel)
        plain(group)
    plain(app)
    return app


def _wanted(named: Mapping[str, tuple[str, str]], asked: str) -> Mapping[str, tuple[str, str]]:
    return {name: what for name, what in named.items() if asked == name or asked not in {**COMMANDS, **GROUPS}}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """AI models as shared services on machines you own: train, optimise, deploy, infer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: this process's) and return its exit code. Prints; never raises."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        app = assemble(given[0] if given else "")
        return int(app(given, prog_name="modelyard", standalone_mode=False) or 0)
    except ModelyardError as error:
        complain(as_json, error.code, error.message)
        return exit_code(error)
    except TyperException as error:
        if error.format_message():  # empty where no command was given: the help has been shown instead
            complain(as_json, "usage", f"{error.format_message()} See `{_command_of(error)} --help`.")
        return 2
    except Left as left:
        if as_json:
            complain(True, left.code, left.message)
        else:
            note(left.message)
        return left.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain(as_json, "interrupted", "Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`); Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        complain(as_json, Internal.code, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    except Exception as error:  # noqa: BLE001 - the edge of the process: a traceback goes to a file, not to the user
        complain(as_json, Internal.code, f"{type(error).__name__}: {error}. The traceback is in {_keep_traceback()}.")
        return 1


def exit_code(error: ModelyardError) -> int:
    """The exit code of an error: that of its nearest class in `EXIT`."""
    return next(EXIT[cls] for cls in type(error).__mro__ if cls in EXIT)


def _command_of(error: TyperException) -> str:
    """The command that was used wrongly, as 'modelyard model import'."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context else "modelyard"


def _keep_traceback() -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="modelyard-", suffix=".txt", delete=False) as file:
        file.write(traceback.format_exc())
    return Path(file.name)
