"""What the benchmarks share: facts of the machine, processor time and memory of a process tree, a script's frame, the record.

A script measures and calls `Record.figure` for each of its figures: one line is printed, and one entry is kept beside its
target in results/NAME.json. Nothing here knows what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import modelyard
from modelyard.client import Yard

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"
MB = 1e6
# Of a processor's flags, those that decide how fast a graph in eight bits is beside one in float.
VECTORS = {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"}
_TICKS = os.sysconf("SC_CLK_TCK")
T = TypeVar("T")


@dataclass
class Record:
    """One script's run. `quick` runs are for trying the script out: short, and marked as such in the record."""

    name: str
    quick: bool
    out: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: argparse.Namespace = field(default_factory=argparse.Namespace)
    began: float = field(default_factory=time.monotonic)
    busy: tuple[float, float] = field(default_factory=lambda: (busy_seconds(), cpu_of([os.getpid()])))

    def figure(
        self,
        name: str,
        measured: float,
        unit: str,
        *,
        least: float | None = None,
        most: float | None = None,
        below: float | None = None,
        **more: Any,
    ) -> None:
        """One figure; `least`, `most` or `below` is its target, none where it is only recorded. `more` is kept with it."""
        asked = [("≥", least, operator.ge), ("≤", most, operator.le), ("<", below, operator.lt)]
        bounds = [(sign, bound, holds) for sign, bound, holds in asked if bound is not None]
        target = " and ".join(f"{sign} {bound:g}" for sign, bound, _ in bounds) or None
        met = all(holds(measured, bound) for _, bound, holds in bounds) if bounds else None
        self.figures[name] = {"measured": measured, "unit": unit, "target": target, "met": met, **more}
        verdict = "recorded" if met is None else "met" if met else "MISSED"
        print(
            f"{verdict:8} {self.name}: {name} = {measured:.4g} {unit}" + (f"  (target {target})" if target else ""), flush=True
        )

    def save(self) -> None:
        body = {
            "name": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "quick": self.quick,
            "seconds": round(time.monotonic() - self.began, 1),
            "machine": machine(),
            "versions": versions(),
            "parameters": self.parameters,
            "figures": self.figures,
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def recording(name: str, about: str, more: Callable[[argparse.ArgumentParser], None] | None = None) -> Iterator[Record]:
    """A script's frame: its arguments (those that `more` adds are in the record's `given`), and the record written at its end,
    also of the figures before a failure. Exits 1 where a target was missed, but of a quick run."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="a small run that tries the script out; its figures mean little")
    parser.add_argument(
        "--out", type=Path, help="where to write the record (default: results/NAME.json; of a quick run: nowhere kept)"
    )
    if more is not None:
        more(parser)
    given = parser.parse_args()
    unkept = Path(tempfile.gettempdir()) / f"modelyard-{name}-quick.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then too
    record = Record(name, given.quick, given.out or (unkept if given.quick else RESULTS / f"{name}.json"), given=given)
    try:
        yield record
    finally:
        record.save()
    if not record.quick and any(figure["met"] is False for figure in record.figures.values()):
        sys.exit(1)


def machine() -> dict[str, Any]:
    lines = list(_lines("/proc/cpuinfo"))
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "vector_instructions": sorted(VECTORS & set(next((line for line in lines if line.startswith("flags")), "").split())),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "modelyard": modelyard.__version__}
    for package in ("torch", "onnxruntime", "fastapi", "uvicorn", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str:
    """The commit the working tree is at; '+' where it differs from it, in more than the records that were just made."""
    at = _git("describe", "--always", "--abbrev=12")
    changed = _git("status", "--porcelain", "--", ".", f":(exclude){RESULTS.relative_to(ROOT)}")
    return f"{at}+" if changed else at or "unknown"


def _git(*words: str) -> str:
    said = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """How many seconds `work` took, and what it returned."""
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, at = [pid], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def cpu_of(pids: Iterable[int]) -> float:
    """Processor seconds of processes and of the children they waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return total / _TICKS


def busy_seconds() -> float:
    """Processor seconds that the whole machine has spent since it started."""
    fields = list(map(int, _lines("/proc/stat")[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def memory_of(pid: int, what: str = "Pss") -> int:
    """Bytes: 'Pss' (shared pages divided among who shares them), 'VmRSS' (resident); 0 where it ended."""
    file = "smaps_rollup" if what == "Pss" else "status"
    with contextlib.suppress(OSError):
        for line in _lines(f"/proc/{pid}/{file}"):
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) * 1024
    return 0


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def role_of(pid: int) -> str:
    """What a process of the platform is: 'control', 'gateway', 'replica', 'worker' …, by the module it runs."""
    words = command_of(pid).split()
    module = words[words.index("-m") + 1] if "-m" in words else (words or ["?"])[0]
    last = module.rpartition(".")[2].rpartition("/")[2]
    takes_word = module in ("modelyard", "modelyard.app.process") and len(words) > words.index("-m") + 2
    return words[words.index("-m") + 2] if takes_word else last


def processes(yard: Yard) -> dict[int, str]:
    """Every process of a platform on this machine, pid → role: the supervisor's tree, which holds all."""
    return {pid: role_of(pid) for pid in tree(supervisor_of(yard))}


def data_folder(yard: Yard) -> Path:
    """The data folder of a platform on this machine."""
    assert yard.profile.file is not None, "a platform that `testing.yard` started has its profile in a file"
    return yard.profile.file.parent


def supervisor_of(yard: Yard) -> int:
    """The pid of `modelyard up`, which serves `yard`: the process with its data folder among its arguments."""
    data = data_folder(yard)
    mine = [pid for pid in tree(os.getpid())[1:] if f"up --data {data} " in command_of(pid) + " "]
    return mine[0]


class Peaks:
    """The most memory of each process of some trees as resident (shared pages counted in full), looked at every
    20 ms while a block runs; `watch` adds a process."""

    def __init__(self, pids: Callable[[], Mapping[int, str]]) -> None:
        self.bytes: dict[str, int] = {}
        self._pids = pids
        self._more: dict[int, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def watch(self, pid: int, role: str) -> None:
        self._more[pid] = role

    def _watch(self) -> None:
        looked, known = 0.0, dict(self._pids())
        while not self._over.wait(0.02):
            if time.monotonic() - looked > 1:  # who there is changes seldom, and costs more to find out
                looked, known = time.monotonic(), dict(self._pids())
            for pid, role in (known | self._more).items():
                self.bytes[role] = max(self.bytes.get(role, 0), memory_of(pid, "VmRSS"))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def at(event: Mapping[str, Any]) -> float:
    """When an event happened, in seconds since 1970."""
    return datetime.fromisoformat(str(event["at"])).timestamp()


if __name__ == "__main__":
    sys.exit("record.py measures nothing; run one of the other scripts, or `make bench`.")
