"""What `modelyard doctor` looks at: each check says what it found and, where something is amiss, what to do.

Checks look from outside and change nothing; libraries are looked up, not loaded.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from modelyard.cli.screen import size
from modelyard.client.profile import origin_of, read
from modelyard.errors import ModelyardError
from modelyard.plugins import load
from modelyard.settings import Settings

ENOUGH_DISK = 5 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """`state` is 'failed' where a platform will not work, 'warning' where a part of it will not."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Check]:
    """Every check, in the order to put things right."""
    return [
        python(sys.version_info[:3]),
        library(
            "torch",
            "to train and to serve torch models: pip install 'modelyard[train]'; pytorch.org says how to get its CPU build",
        ),
        library("onnxruntime", "to optimise and to serve ONNX models: pip install 'modelyard[onnx]'"),
        *([library("ray", "for the cluster: pip install 'modelyard[ray]'")] if settings.cluster else []),
        library("scikit-learn", "to import its data sets: pip install 'modelyard[data]'"),
        bubblewrap(settings.sandbox),
        disk(settings.data),
        *permissions(settings.data),
        database(settings.database_url),
        port(at_profile(settings)),
    ]


def python(found: tuple[int, ...]) -> Check:
    text = ".".join(map(str, found))
    return Check("python", "ok", text) if found >= (3, 11) else Check("python", "failed", text, "install Python 3.11 or newer")


def library(name: str, advice: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "warning", "not installed", f"needed {advice}")


def bubblewrap(mode: str) -> Check:
    """Whether users' code can be put in a sandbox here, as the setting `sandbox` wants it."""
    if load("modelyard.jobs.sandbox:available")():
        return Check("sandbox", "ok", "bubblewrap works")
    found = "bubblewrap does not work here" if shutil.which("bwrap") else "bubblewrap is not installed"
    advice = (
        "apt install bubblewrap, and allow user namespaces; without it users' code runs as a plain process (docs/sandbox.md)"
    )
    return Check("sandbox", "failed" if mode == "require" else "warning", found, advice)


def disk(data: Path) -> Check:
    there = next(folder for folder in (data, *data.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free >= ENOUGH_DISK:
        return Check("disk", "ok", f"{size(free)} free")
    return Check("disk", "warning", f"{size(free)} free", f"make room at {there}, or choose another folder with --data")


def permissions(data: Path) -> list[Check]:
    """The data folder is ours to write, and what is secret in it is nobody else's to read."""
    if not data.exists():
        parent = next(folder for folder in data.parents if folder.exists())
        writable = os.access(parent, os.W_OK | os.X_OK)
        advice = "" if writable else f"you may not write in {parent}: choose another folder with --data"
        return [Check("data folder", "ok" if writable else "failed", f"{data} will be made", advice)]
    writable = os.access(data, os.W_OK | os.X_OK)
    advice = "" if writable else "give it to this user, or choose another with --data"
    checks = [Check("data folder", "ok" if writable else "failed", str(data), advice)]
    for file in (data / "profile.json", data / "secret", data / "gateway.pem"):
        if file.exists() and file.stat().st_mode & 0o077:
            checks.append(
                Check(file.name, "failed", f"mode {file.stat().st_mode & 0o777:o}", f"others can read it: chmod 600 {file}")
            )
    return checks


def database(url: str) -> Check:
    """An SQLite file is read and checked; of another database only the kind is told."""
    kind, _, path = url.partition(":///")
    if kind != "sqlite":
        return Check("database", "ok", kind.partition("+")[0])
    if not Path(path).exists():
        return Check("database", "ok", "will be made")
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            verdict = str(connection.execute("PRAGMA quick_check").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict == "ok":
        return Check("database", "ok", f"{path} is whole")
    return Check("database", "failed", verdict, f"stop the platform and restore {path} from a copy")


def at_profile(settings: Settings) -> Settings:
    """With the port of this data folder's platform, by its profile, where no flag, environment or file says another."""
    if "port" in settings.model_fields_set:
        return settings
    try:
        profile = read(settings.data / "profile.json")
        return settings if profile is None else settings.model_copy(update={"port": origin_of(profile.url)[2]})
    except ModelyardError:
        return settings


def port(settings: Settings) -> Check:
    """The port is free, or a platform of this data folder has it."""
    address = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if _runs_here(settings):
                return Check("port", "ok", f"the platform of this data folder answers at {address}")
            return Check("port", "failed", f"{address}: {error.strerror}", "choose another with --port; 0 picks a free one")
    return Check("port", "ok", f"{address} is free")


def _runs_here(settings: Settings) -> bool:
    """Whether the platform of the profile answers, at this port."""
    try:
        profile = read(settings.data / "profile.json")
        if profile is None or not profile.url.endswith(f":{settings.port}"):
            return False
        with load("modelyard.client:Yard")(profile.url, profile.key) as yard:
            yard.whoami()
    except ModelyardError:
        return False
    return True
