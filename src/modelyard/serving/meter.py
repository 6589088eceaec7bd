"""The exact meter of a gateway: counters in a mapped file that survive the gateway being killed at any moment.

The gateway raises a slot (a microsecond) before it writes an answer; a thread settles the differences to what was settled
before. A slot keeps two copies of its counters and a version whose lowest bit says which one is whole: raising fills the
other copy, then moves the version by one store, so that no moment shows half a call. The page cache belongs to the kernel:
what a killed gateway counted is read by the next settler, which knows by the file's lock that its owner is gone.

It knows no database: `settle` and `settled` are given to it (`app` binds them to the ledger).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from modelyard.errors import Damaged, Unavailable
from modelyard.metrics import UNEXPECTED
from modelyard.telemetry import log

_log = log(__name__)
_MAGIC = b"MYMETER1"
_HEADER = struct.Struct("<8s16sQ")  # magic, file id, number of slots
_HEADER_SIZE = 4096
_COUNTS = struct.Struct("<6Q")
_VERSION = struct.Struct("<Q")
_NAME_SIZE = struct.Struct("<Q")
# A slot: version, two copies of the counters, length of the identity, identity.
_COPIES = (_VERSION.size, _VERSION.size + _COUNTS.size)
_NAMED = _VERSION.size + 2 * _COUNTS.size
SLOT = 1024
SLOTS = 1024
_PATIENCE = 10.0  # seconds that the thread has for its last step


class Identity(NamedTuple):
    """Who used what: `deployment` by name, `model` as a reference ('digits-cnn@3')."""

    project: str
    key: str
    deployment: str
    model: str


class Counters(NamedTuple):
    """What a slot counts; every number only grows. `version` counts the changes themselves."""

    version: int = 0
    calls: int = 0
    errors: int = 0
    units: int = 0
    cpu_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to book: `used` since the last settlement, and `total`, to be kept with it in the same transaction.
    `source` is the same for the same piece of use, however often it is told."""

    file: str
    slot: int
    identity: Identity
    used: Counters
    total: Counters

    @property
    def source(self) -> str:
        return f"meter:{self.file}:{self.slot}:{self.total.version - self.used.version}"


def deltas(file: str, slots: Mapping[int, tuple[Identity, Counters]], settled: Mapping[int, Counters]) -> list[Settlement]:
    """What `slots` counted beyond what was `settled`, by slot."""
    found = []
    for number, (identity, total) in slots.items():
        before = settled.get(number, Counters())
        if total.version > before.version:
            used = Counters(*(now - then for now, then in zip(total, before, strict=True)))
            found.append(Settlement(file, number, identity, used, total))
    return found


class Slot:
    """One line of counters, raised by the gateway's loop."""

    __slots__ = ("_at", "_counts", "_map", "_version")

    def __init__(self, map_: mmap.mmap, at: int) -> None:
        self._map, self._at = map_, at
        self._version = 0
        self._counts = (0, 0, 0, 0, 0, 0)

    def add(self, calls: int, errors: int, units: int, cpu_us: int, bytes_in: int, bytes_out: int) -> None:
        """Count. When this returns, what was counted outlives the process."""
        c = self._counts
        counts = (c[0] + calls, c[1] + errors, c[2] + units, c[3] + cpu_us, c[4] + bytes_in, c[5] + bytes_out)
        version = self._version + 1
        _COUNTS.pack_into(self._map, self._at + _COPIES[version & 1], *counts)
        _VERSION.pack_into(self._map, self._at, version)
        self._version, self._counts = version, counts


class MeterFile:
    """A file of slots. Its owner holds an exclusive lock on it for as long as it lives."""

    def __init__(self, path: Path, handle: int, map_: mmap.mmap) -> None:
        self.path, self._handle, self._map = path, handle, map_
        magic, name, self.slots = _HEADER.unpack_from(map_)
        if magic != _MAGIC or len(map_) != _HEADER_SIZE + self.slots * SLOT:
            raise Damaged(f"'{path.name}' is not a meter file.")
        self.id = name.hex()

    @classmethod
    def create(cls, folder: Path, slots: int = SLOTS) -> MeterFile:
        """A fresh file, owned by this process, all its space reserved. Raises `OSError` where there is none."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = secrets.token_bytes(16)
        hidden, path = folder / f".{name.hex()}", folder / f"{name.hex()}.meter"
        handle = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = _HEADER_SIZE + slots * SLOT
            # Without the space reserved, a full disk would be a bus error at some later call.
            os.posix_fallocate(handle, 0, size)
            map_ = mmap.mmap(handle, size)
            _HEADER.pack_into(map_, 0, _MAGIC, name, slots)
            hidden.rename(path)
            return cls(path, handle, map_)
        except BaseException:
            os.close(handle)
            hidden.unlink(missing_ok=True)
            raise

    @classmethod
    def adopt(cls, path: Path) -> MeterFile | None:
        """The file of an owner that is gone; None while it lives. Raises `Damaged` for what is no meter file."""
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(handle).st_nlink:  # another settler had it, settled it and removed it
                raise FileNotFoundError(path)
            if os.fstat(handle).st_size < _HEADER_SIZE:
                raise Damaged(f"'{path.name}' is not a meter file.")
            return cls(path, handle, mmap.mmap(handle, 0))
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise

    def open_slot(self, number: int, identity: Identity) -> Slot:
        """Begin a slot. The identity is written before anything can be counted under it."""
        at = _HEADER_SIZE + number * SLOT
        name = msgspec.msgpack.encode(identity)
        if len(name) > SLOT - _NAMED - _NAME_SIZE.size:
            raise Unavailable("The names of this call are too long to be metered.")
        self._map[at + _NAMED + _NAME_SIZE.size : at + _NAMED + _NAME_SIZE.size + len(name)] = name
        _NAME_SIZE.pack_into(self._map, at + _NAMED, len(name))
        return Slot(self._map, at)

    def read(self) -> dict[int, tuple[Identity, Counters]]:
        """Every slot that counted something, each as it was at one moment."""
        return {number: slot for number in range(self.slots) if (slot := self._read(number)) is not None}

    def _read(self, number: int) -> tuple[Identity, Counters] | None:
        at = _HEADER_SIZE + number * SLOT
        while True:
            (version,) = _VERSION.unpack_from(self._map, at)
            if version == 0:
                return None
            counts = _COUNTS.unpack_from(self._map, at + _COPIES[version & 1])
            if _VERSION.unpack_from(self._map, at)[0] == version:
                break  # else the owner counted meanwhile: look again
        (size,) = _NAME_SIZE.unpack_from(self._map, at + _NAMED)
        start = at + _NAMED + _NAME_SIZE.size
        identity = msgspec.msgpack.decode(self._map[start : start + size], type=Identity)
        return identity, Counters(version, *counts)

    def close(self, *, remove: bool = False) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._handle)


class Meters:
    """The meters of one gateway, and the settler of all files in the folder whose owners are gone.

    `settled(file)` reads what was settled of a file, by slot; `settle(settlements)` books each `used` under its `source` and
    keeps each `total`, in one transaction; `forget(files)` drops what was kept of files that are gone.
    """

    def __init__(
        self,
        folder: Path,
        settle: Callable[[Sequence[Settlement]], None],
        settled: Callable[[str], Mapping[int, Counters]],
        forget: Callable[[str], None],
        *,
        every: float = 0.5,
        slots: int = SLOTS,
    ) -> None:
        self._folder, self._every, self._size = folder, every, slots
        self._settle, self._settled, self._forget = settle, settled, forget
        self._slots: dict[Identity, Slot] = {}
        self._files: list[MeterFile] = []
        self._used = 0
        # What is known to be settled of our own files; dropped after a failure, when only the book knows.
        self._known: dict[str, dict[int, Counters]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def slot(self, identity: Identity) -> Slot:
        """The counters of `identity`. Raises `Unavailable` where they cannot be kept: what is not metered is not served."""
        slot = self._slots.get(identity)
        if slot is None:
            try:
                slot = self._slots[identity] = self._open(identity)
            except OSError as error:
                raise Unavailable("Usage cannot be metered at the moment; try again shortly.") from error
        return slot

    def _open(self, identity: Identity) -> Slot:
        if not self._files or self._used == self._size:
            self._files = [*self._files, MeterFile.create(self._folder, self._size)]
            self._used = 0
        slot = self._files[-1].open_slot(self._used, identity)
        self._used += 1
        return slot

    def start(self) -> None:
        """Settle from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Settle a last time; files that are settled whole are removed. Where the thread waits for its books still, all stay to
        the next gateway: two settlers of one file would each book from where they know it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                _log.warning("usage not settled; the next gateway does it", files=len(self._files))
                return
        self._step()
        for file in self._files:
            whole = not deltas(file.id, file.read(), self._known.get(file.id, {}))
            file.close(remove=whole)
        self._files = []

    def settle_once(self) -> None:
        """Settle our own files and those of gateways that are gone. Raises what `settle` raises; nothing is lost by that."""
        for file in self._files:
            self._settle_file(file)
        for file in self._orphans():
            try:
                self._settle_file(file)
            except BaseException:
                file.close()
                raise
            file.close(remove=True)
            self._known.pop(file.id, None)
            self._forget(file.id)

    def _settle_file(self, file: MeterFile) -> None:
        known = self._known.pop(file.id, None)
        if known is None:
            known = dict(self._settled(file.id))
        due = deltas(file.id, file.read(), known)
        if due:
            self._settle(due)
            known.update({settlement.slot: settlement.total for settlement in due})
        self._known[file.id] = known

    def _orphans(self) -> Iterator[MeterFile]:
        ours = {file.path for file in self._files}
        for path in sorted(self._folder.glob("*.meter")):
            if path in ours:
                continue
            try:
                file = MeterFile.adopt(path)
            except FileNotFoundError:
                continue  # another settler was faster
            except Damaged:
                path.rename(path.with_suffix(".damaged"))
                _log.error("meter file set aside", file=path.name)
                continue
            if file is not None:
                yield file

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._step()

    def _step(self) -> None:
        try:
            self.settle_once()
        except Exception as error:  # noqa: BLE001 - the edge of a thread: the counters stay, the next step tries again
            UNEXPECTED.labels("meter").inc()
            _log.warning("usage not settled", error=repr(error)[:300])
