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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from modelyard import __version__
from modelyard.cli import access, catalogue, jobs, processes, receipt, serving
from modelyard.cli.help import plain
from modelyard.cli.screen import INTERRUPTED, Left, complain, note
from modelyard.errors import CallerError, Forbidden, Internal, ModelyardError, NotFound, TimedOut, Unauthorized, Unavailable

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
COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    RUN: {
        "up": processes.up,
        "gateway": processes.gateway,
        "control": processes.control,
        "node": processes.node,
        "migrate": processes.migrate,
    },
    BUILD: {"train": jobs.train, "optimize": jobs.optimize},
    SERVE: {"deploy": serving.deploy, "predict": serving.predict, "undeploy": serving.undeploy},
    LOOK: {
        "ps": jobs.ps,
        "logs": jobs.logs,
        "stop": jobs.stop,
        "receipt": receipt.receipt,
        "usage": access.usage,
        "whoami": access.whoami,
        "doctor": processes.doctor,
    },
    OWN: {"delete": catalogue.delete_any},
}
GROUPS: Mapping[str, Sequence[typer.Typer]] = {
    BUILD: (catalogue.dataset, catalogue.model),
    SERVE: (serving.deployment,),
    OWN: (access.key, access.project),
}

app = typer.Typer(
    name="modelyard",
    help="AI models as shared services on machines you own: train, optimise, deploy, infer.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 key, 4 not found, 5 not available, 6 refused, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """AI models as shared services on machines you own: train, optimise, deploy, infer."""


for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
for _panel, _groups in GROUPS.items():
    for _group in _groups:
        app.add_typer(_group, rich_help_panel=_panel)
        plain(_group)
plain(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: this process's) and return its exit code. Prints; never raises."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
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
