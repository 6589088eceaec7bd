"""A job that runs, in control's memory: its gang, what the gang said and is not yet written, what it asked and is not yet
answered. The scheduler holds one per attempt.

What a gang says is a user's code speaking: it is read here, once, bounded, and turned into what may be written.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelyard.errors import Conflict, Invalid, ModelyardError, from_wire
from modelyard.jobs.records import Said
from modelyard.jobs.types import NAME, NAME_IN_WORDS, Event, Gang, GangHandle, Job, State, Submission
from modelyard.storage import Manifest

_LONGEST_TEXT = 8192
# Log lines kept of one attempt, and bytes of each type of event; what comes after is dropped, of lines it is said.
MOST_LINES, _MOST_BYTES = 100_000, 64 << 20
# Metrics of the same names, and bytes of them, that are kept before every second is, and again before every fourth; names.
_METRICS, _METRIC_BYTES, _MOST_NAMES = 20_000, 8 << 20, 64
# Bytes of facts: of one rank, and of all together (one that trains reports about 1,200).
_RANK_FACTS, _MOST_FACTS = 256 << 10, 8 << 20
# So many are written at once; more are written the later, by so many seconds each time.
_FACTS, _FACTS_LATER = 64 << 10, 1 / 16
# The fact that says what memory a job expected to need, and what the errors say beside which it is told.
_ESTIMATE, _NO_MEMORY = "memory_estimate", "ran out of memory"
# Microseconds of processor time, so that a gang which sleeps costs the database nothing.
_WORTH_WRITING = 100_000
# Seconds over which an idle gang is watched, and processors that one uses at most in them which really only waits and decides.
_WINDOW, _LITTLE = 10.0, 0.5


@dataclass(frozen=True, slots=True)
class Output:
    """A published output, in the store but not yet registered. `versioned`: it is to become a version; `job`: the child that
    made it, None where the job itself did."""

    name: str
    manifest: Manifest
    task: str | None
    metadata: Mapping[str, Any]
    alias: str | None
    versioned: bool = True
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a rank asked and waits for: 'output', 'adopt', 'checkpoint', 'submit', 'wait', 'watch' or 'stop'."""

    ask: int
    type: str
    body: Mapping[str, Any]
    asked: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Curve:
    """How much there was of metrics of the same names, and how much was kept."""

    seen: int = 0
    kept: int = 0
    size: int = 0

    def keeps(self, size: int) -> bool:
        """Whether one more of so many bytes is kept: of the first all are, then every second, every fourth …"""
        every = 1 << max(self.kept // _METRICS, self.size // _METRIC_BYTES)
        self.seen += 1
        if self.seen % every:
            return False
        self.kept, self.size = self.kept + 1, self.size + size
        return True


@dataclass(eq=False)
class Active:
    """One attempt of a job. `ended` is the gang's last word, `verdict` ours, which counts more; `storing` is what is being
    stored, with the question that it answers, `stuck` what was given up of it; `waits` the children that are waited for, by
    question; `kept`: whether it has stored a checkpoint, `further`: one of a step that the job had never come to; `nodes`: how
    many ranks are where; `sent_back`: when it was asked to make room for a higher one; `instead`: the attempt before, whose
    launcher waits for this one."""

    job: Job
    folder: Path
    preparing: Future[Gang] | None = None
    handle: GangHandle | None = None
    instead: GangHandle | None = None
    said: list[Said] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    storing: list[tuple[Question, Future[Any]]] = field(default_factory=list)
    stuck: list[Future[Any]] = field(default_factory=list)
    waits: dict[int, str] = field(default_factory=dict)
    watches: dict[int, Mapping[str, int]] = field(default_factory=dict)
    watching: bool = False
    resumes: bool = False
    kept: bool = False
    further: bool = False
    outputs: dict[str, Output] = field(default_factory=dict)
    ended: Mapping[str, Any] | None = None
    verdict: ModelyardError | None = None
    cancelled_at: float | None = None
    sent_back: float | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    has_children: bool = False
    began: float = field(default_factory=time.monotonic)
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _size: int = 0
    _facts_due: float | None = None
    _curves: dict[str, Curve] = field(default_factory=dict)
    _lines: int = 0
    _bytes: dict[str, int] = field(default_factory=dict)
    _full: bool = False
    _cpu_us: int = 0
    _window: tuple[float, int] | None = None
    _computes: bool = False

    def __post_init__(self) -> None:
        if self.job.resume is not None:
            self._report("0", {"resumed_from": self.job.resume})

    @classmethod
    def left(cls, job: Job, folder: Path, charged_us: int) -> Active:
        """An attempt that an earlier control left behind, with the last it wrote of it. `charged_us` is the processor time of
        the attempts before, which the ledger has already."""
        facts = {rank: dict(said) for rank, said in job.facts.items()}
        used = max(0, job.cpu_us - charged_us)
        return cls(replace(job, cpu_us=charged_us), folder, _facts=facts, _cpu_us=used)

    @property
    def token(self) -> str:
        assert self.job.token is not None, "only a claimed job is active"
        return self.job.token

    @property
    def yields(self) -> bool:
        """Whether it may be sent back: it has a checkpoint to go on from, and nothing else to lose."""
        done = self.preparing is not None and self.preparing.done() and self.preparing.exception() is None
        resumed = done and self.preparing is not None and self.preparing.result().resume is not None
        ending = self.ended or self.verdict or self.cancelled_at or self.sent_back
        return self.handle is not None and not ending and not self.has_children and (self.kept or resumed)

    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        return self._facts

    @property
    def idle(self) -> bool:
        """Whether it only waits for its children, or looks after them, and so holds no processors. One that computes all the
        same does hold them."""
        return self._says_idle and not self._computes

    @property
    def _says_idle(self) -> bool:
        return bool(self.waits) or self.watching

    def take(self, events: Sequence[Event]) -> None:
        """Note what the gang said. Raises `Invalid` for what no gang may say. Once there is a verdict only its end counts."""
        if events and events[-1].type == "ended":
            self.ended = events[-1].body
        try:
            for event in events if self.verdict is None else ():
                self._take(event.type, event.body)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Invalid(f"The job's code sent a message that is none: {error!r}.") from error
        if self._facts_due is not None and time.monotonic() >= self._facts_due:
            self._facts_due, self.changes["facts"] = None, self._facts

    def _take(self, kind: str, body: Mapping[str, Any]) -> None:
        match kind:
            case "started":
                self.changes |= {"state": State.running, "pids": [int(pid) for pid in body["pids"]]}
            case "log":
                level = {"level": "warning"} if body.get("level") == "warning" else {}
                self._line({"rank": int(body["rank"]), "text": str(body["text"])[:_LONGEST_TEXT], **level})
            case "metric":
                values = {str(name): _finite(value) for name, value in dict(body["values"]).items()}
                self._measure({"step": int(body["step"]), "values": values})
            case "progress":
                self._progress({"done": int(body["done"]), "total": int(body["total"]), "unit": str(body["unit"])[:40]})
            case "report":
                self._report(str(int(body["rank"])), dict(body["facts"]))
            case "output" | "adopt" | "checkpoint" | "submit" | "wait" | "watch" | "stop":
                self.questions.append(Question(int(body["ask"]), kind, body))
            case "beat":
                self._use(_microseconds(body["cpu_seconds"]))
                self._watch(_microseconds(body["cpu_seconds"]))
            case "ended":
                pass
            case _:
                raise Invalid(f"The job's code sent a message of unknown type '{kind[:40]}'.")

    def _line(self, body: Mapping[str, Any]) -> None:
        self._lines += 1
        if (self._fits("log", body) and self._lines < MOST_LINES) or body.get("level") == "warning":
            self.said.append(("log", body))
        elif not self._full:
            self._full = True
            limits = f"{MOST_LINES:,} lines or {_MOST_BYTES:,} bytes"
            self.said.append(("log", {"rank": 0, "text": f"(more than {limits}; what follows is not kept)"}))

    def _measure(self, body: Mapping[str, Any]) -> None:
        """Metrics are thinned out where there are too many, each curve by itself: one a step leaves one an epoch alone."""
        name = " ".join(sorted(body["values"]))
        if name not in self._curves and len(self._curves) >= _MOST_NAMES:
            name = ""
        if self._curves.setdefault(name, Curve()).keeps(len(json.dumps(body))):
            self.said.append(("metric", body))

    def _fits(self, kind: str, body: Mapping[str, Any]) -> bool:
        self._bytes[kind] = self._bytes.get(kind, 0) + len(json.dumps(body))
        return self._bytes[kind] <= _MOST_BYTES

    def _progress(self, progress: Mapping[str, Any]) -> None:
        if self.said and self.said[-1][0] == "progress":
            self.said.pop()
        if self._fits("progress", progress):
            self.said.append(("progress", progress))
        self.changes["progress"] = progress

    def _report(self, rank: str, facts: Mapping[str, Any]) -> None:
        """Facts are written as a whole, so the more there are the less often; the last word is, at the attempt's end."""
        mine = self._facts.setdefault(rank, {})
        mine.update(facts)
        size = len(json.dumps(mine))
        self._size += size - self._sizes.get(rank, 0)
        self._sizes[rank] = size
        if size > _RANK_FACTS or self._size > _MOST_FACTS:
            most = f"{_RANK_FACTS:,} bytes of facts of a rank, or {_MOST_FACTS:,} in all"
            raise Invalid(f"Rank {rank} reported more than is kept: {most}; put large things in an output.")
        if self._fits("report", facts):
            self.said.append(("report", {"rank": int(rank), "facts": facts}))
        if self._facts_due is None:
            self._facts_due = time.monotonic() + self._size // _FACTS * _FACTS_LATER

    def _use(self, cpu_us: int) -> None:
        """Processor time so far; a little more is not worth a write."""
        if cpu_us - self._cpu_us >= _WORTH_WRITING:
            self._cpu_us = cpu_us
            self.changes["cpu_us"] = self.job.cpu_us + cpu_us

    def _watch(self, cpu_us: int) -> None:
        """See whether a gang that says it waits uses processors, window by window."""
        if not self._says_idle:
            self._window, self._computes = None, False
            return
        moment = time.monotonic()
        began, used = self._window = self._window or (moment, cpu_us)
        if moment - began >= _WINDOW:
            self._computes = (cpu_us - used) / 1e6 > _LITTLE * (moment - began)
            self._window = (moment, cpu_us)

    def check_output(self, body: Mapping[str, Any]) -> tuple[str, Path, str | None, dict[str, Any], str | None]:
        """The parts of a question to publish. Raises `Invalid` or `Conflict` for what cannot be an output."""
        name, task, alias = self.check_name(body["name"]), body["task"], body["alias"]
        return name, self.within(body["folder"]), task and str(task)[:100], dict(body["metadata"]), alias and str(alias)

    def check_name(self, said: Any) -> str:
        """The name of a new output. Raises `Invalid` or `Conflict`."""
        name = str(said)
        if not re.fullmatch(NAME, name):
            raise Invalid(f"'{name[:80]}' is no name of an output; expected {NAME_IN_WORDS}.")
        if name in self.outputs:
            raise Conflict(f"The output '{name}' was published already.")
        return name

    def within(self, folder: Any) -> Path:
        """A folder the gang named, which must lie in its work folder. Raises `Invalid`; links are found when it is read."""
        work, path = self.folder / "work", Path(str(folder))
        if work not in path.parents or ".." in path.parts:
            raise Invalid(f"'{path.name}' does not lie in the job's work folder; only what does can be handed over.")
        return path

    def child(self, body: Mapping[str, Any]) -> Submission:
        """A question to submit a child job, as a submission. Raises `Invalid`."""
        said = body["submission"]
        asked = {name: said[name] for name in ("kind", "config", "inputs", "ranks")}
        return Submission.model_validate(asked)

    @property
    def error(self) -> ModelyardError | None:
        """What went wrong, if anything did."""
        said = (self.ended or {}).get("error")
        return self.verdict or (from_wire(str(said["code"]), self._beside(str(said["message"]))) if said else None)

    def _beside(self, message: str) -> str:
        """The message, with what the job expected to need where that may be the cause."""
        found = next((facts[_ESTIMATE] for facts in self._facts.values() if isinstance(facts.get(_ESTIMATE), dict)), None)
        if _NO_MEMORY not in message or found is None:
            return message
        known = [(str(name)[:40], value) for name, value in found.items() if isinstance(value, int) and 0 <= value < 1 << 63]
        parts = ", ".join(f"{name} {value:,}" for name, value in known[:12])
        return f"{message}\nEstimated before the first step, at the least, in bytes of a rank: {parts}."

    @property
    def cpu_us(self) -> int:
        """Microseconds of processor time of this attempt, as far as is known: a gang that was killed may end without a word."""
        return max(self._cpu_us, _microseconds((self.ended or {}).get("cpu_seconds")))

    @property
    def units(self) -> int:
        """What the ranks said, up to now, that they worked on in this attempt: samples, else rows."""
        for name in ("samples", "rows"):
            counts: list[int] = [facts[name] for facts in self._facts.values() if isinstance(facts.get(name), int)]
            if counts:
                return max(0, min(sum(counts), 1 << 62))
        return 0


def _microseconds(seconds: Any) -> int:
    return int(seconds * 1e6) if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else 0


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
