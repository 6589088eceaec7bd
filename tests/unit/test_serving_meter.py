"""The meter counts exactly, is read whole at any moment, and is booked once however often settling is tried."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Damaged, Unavailable
from modelyard.serving.meter import SLOT, Counters, Identity, MeterFile, Meters, Settlement, deltas

WHO = Identity("p", "k1", "digits", "digits-cnn@3")
OTHER = Identity("p", "k2", "digits", "digits-cnn@3")


class Book:
    """A ledger in memory: entries by source, as the database keeps them. `fails` times it breaks before, `lies` after."""

    def __init__(self):
        self.entries, self.kept, self.fails, self.lies = {}, {}, 0, 0

    def settle(self, settlements):
        if self.fails:
            self.fails -= 1
            raise ConnectionError
        for settlement in settlements:
            self.entries.setdefault(settlement.source, settlement)
            self.kept.setdefault(settlement.file, {})[settlement.slot] = settlement.total
        if self.lies:  # committed, but the answer was lost
            self.lies -= 1
            raise ConnectionError

    def settled(self, file):
        return dict(self.kept.get(file, {}))

    def forget(self, file):
        self.kept.pop(file, None)

    def total(self, identity=WHO):
        used = [entry.used for entry in self.entries.values() if entry.identity == identity]
        return Counters(*(sum(column) for column in zip(*used, strict=True))) if used else Counters()


def meters(folder, book, **options):
    return Meters(folder, book.settle, book.settled, book.forget, **options)


def kill(dead):
    """What SIGKILL leaves: the file, without its lock."""
    for file in dead._files:
        file.close()
    dead._files = []


COUNTS = st.tuples(*(st.integers(0, 2**40) for _ in range(6)))


@given(st.lists(COUNTS, max_size=20))
def test_a_slot_adds_up(tmp_path_factory, counts):
    file = MeterFile.create(tmp_path_factory.mktemp("m"), slots=2)
    slot = file.open_slot(1, WHO)
    for count in counts:
        slot.add(*count)
    sums = [sum(column) for column in zip(*counts, strict=True)]
    assert file.read() == ({1: (WHO, Counters(len(counts), *sums))} if counts else {})
    file.close()


@given(st.dictionaries(st.integers(0, 5), COUNTS), st.dictionaries(st.integers(0, 5), COUNTS))
def test_deltas_are_what_is_not_settled(first, more):
    settled = {slot: Counters(1, *counts) for slot, counts in first.items()}
    grown = {
        slot: Counters(2, *(a + b for a, b in zip(first.get(slot, (0,) * 6), counts, strict=True)))
        for slot, counts in more.items()
    }
    now = {slot: (WHO, total) for slot, total in {**settled, **grown}.items()}
    found = deltas("f", now, settled)
    assert {s.slot for s in found} == set(more)
    for settlement in found:
        before = settled.get(settlement.slot, Counters())
        assert tuple(a + b for a, b in zip(before, settlement.used, strict=True)) == settlement.total
        assert settlement.source == f"meter:f:{settlement.slot}:{before.version}"
    assert deltas("f", now, {slot: total for slot, (_, total) in now.items()}) == []


def test_a_reader_never_sees_half_a_call(tmp_path):
    file = MeterFile.create(tmp_path, slots=1)
    slot = file.open_slot(0, WHO)
    stop = threading.Event()

    def count():
        while not stop.is_set():
            slot.add(1, 1, 1, 1, 1, 1)

    thread = threading.Thread(target=count)
    thread.start()
    seen = [counters for _ in range(3000) for _, counters in file.read().values()]
    stop.set()
    thread.join()
    assert seen == sorted(seen)
    assert all(len(set(counters)) == 1 for counters in seen)
    file.close()


@pytest.mark.parametrize("stores", range(3))
def test_a_kill_between_two_stores_loses_the_one_call_or_none(tmp_path, stores, monkeypatch):
    """Counting makes two stores: the other copy, then the version. Stop before, between and after them."""
    file = MeterFile.create(tmp_path, slots=1)
    slot = file.open_slot(0, WHO)
    slot.add(1, 0, 5, 7, 11, 13)
    left = iter([True] * stores)

    class Stopping:
        def __init__(self, real):
            self.size, self._real = real.size, real

        def pack_into(self, *arguments):
            if not next(left, False):
                raise KeyboardInterrupt
            self._real.pack_into(*arguments)

    from modelyard.serving import meter

    with monkeypatch.context() as patched:
        patched.setattr(meter, "_COUNTS", Stopping(meter._COUNTS))
        patched.setattr(meter, "_VERSION", Stopping(meter._VERSION))
        if stores < 2:
            with pytest.raises(KeyboardInterrupt):
                slot.add(1, 0, 5, 7, 11, 13)
        else:
            slot.add(1, 0, 5, 7, 11, 13)
    times = 2 if stores == 2 else 1
    assert file.read() == {0: (WHO, Counters(*(times * n for n in (1, 1, 0, 5, 7, 11, 13))))}
    file.close()


def test_only_a_file_without_owner_is_adopted(tmp_path):
    file = MeterFile.create(tmp_path)
    assert MeterFile.adopt(file.path) is None
    file.close()
    adopted = MeterFile.adopt(file.path)
    assert adopted is not None
    assert adopted.id == file.id
    adopted.close(remove=True)
    with pytest.raises(FileNotFoundError):
        MeterFile.adopt(file.path)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"MYMETER1" + b"\xff" * 5000])
def test_what_is_no_meter_file_is_set_aside(tmp_path, content):
    (tmp_path / "odd.meter").write_bytes(content)
    book = Book()
    meters(tmp_path, book).settle_once()
    assert (tmp_path / "odd.damaged").exists()
    with pytest.raises(Damaged):
        MeterFile.adopt(tmp_path / "odd.damaged")


def test_use_is_booked_as_it_grows(tmp_path):
    book, mine = Book(), None
    mine = meters(tmp_path, book)
    slot = mine.slot(WHO)
    assert mine.slot(WHO) is slot
    slot.add(1, 0, 3, 100, 10, 20)
    mine.settle_once()
    mine.settle_once()
    slot.add(1, 1, 0, 50, 1, 2)
    mine.slot(OTHER).add(1, 0, 1, 1, 1, 1)
    mine.stop()
    assert len(book.entries) == 3
    assert book.total() == Counters(2, 2, 1, 3, 150, 11, 22)
    assert book.total(OTHER).calls == 1
    assert not list(tmp_path.iterdir())


@given(st.lists(st.sampled_from(["call", "settle", "fail", "lie", "kill"]), max_size=40))
def test_nothing_is_lost_and_nothing_doubled(tmp_path_factory, events):
    folder, book, calls = tmp_path_factory.mktemp("m"), Book(), 0
    mine = meters(folder, book, slots=2)
    for event in events:
        if event == "call":
            mine.slot(WHO).add(1, 0, 2, 3, 4, 5)
            calls += 1
        elif event == "kill":
            kill(mine)
            mine = meters(folder, book, slots=2)
        else:
            book.fails, book.lies = event == "fail", event == "lie"
            try:
                mine.settle_once()
            except ConnectionError:
                book.fails = book.lies = 0
    mine.stop()
    meters(folder, book).settle_once()
    assert book.total()[1:] == (calls, 0, 2 * calls, 3 * calls, 4 * calls, 5 * calls)
    assert not list(folder.iterdir())


def test_a_full_file_is_followed_by_another(tmp_path):
    book = Book()
    mine = meters(tmp_path, book, slots=2)
    for number in range(5):
        mine.slot(Identity("p", f"k{number}", "d", "m@1")).add(1, 0, 0, 0, 0, 0)
    assert len(list(tmp_path.glob("*.meter"))) == 3
    mine.stop()
    assert sum(entry.used.calls for entry in book.entries.values()) == 5


def test_without_room_nothing_is_served(tmp_path):
    (tmp_path / "file").touch()
    mine = meters(tmp_path / "file", Book())
    with pytest.raises(Unavailable, match="cannot be metered"):
        mine.slot(WHO)


def test_names_that_do_not_fit_are_refused(tmp_path):
    mine = meters(tmp_path, Book())
    with pytest.raises(Unavailable, match="too long"):
        mine.slot(Identity("p", "k", "d" * SLOT, "m@1"))
    mine.stop()


def test_what_could_not_be_booked_at_the_end_stays_for_the_next(tmp_path):
    book = Book()
    mine = meters(tmp_path, book)
    mine.slot(WHO).add(1, 0, 0, 0, 0, 0)
    book.fails = 1
    mine.stop()
    assert len(list(tmp_path.glob("*.meter"))) == 1
    meters(tmp_path, book).settle_once()
    assert book.total().calls == 1
    assert not list(tmp_path.iterdir())


def test_who_waits_for_the_books_still_at_the_end_is_the_only_settler(tmp_path, monkeypatch):
    from modelyard.serving import meter

    turn, asked = threading.Lock(), threading.Event()

    class Locked(Book):
        def settle(self, settlements):
            asked.set()
            with turn:
                super().settle(settlements)

    monkeypatch.setattr(meter, "_PATIENCE", 0.02)
    book = Locked()
    mine = meters(tmp_path, book, every=0.001)
    turn.acquire()
    mine.slot(WHO).add(1, 0, 0, 0, 0, 0)
    mine.start()
    assert asked.wait(10)
    for _ in range(2):
        mine.slot(WHO).add(1, 0, 0, 0, 0, 0)
    mine.stop()
    assert not book.entries
    turn.release()
    mine._thread.join(10)
    assert (book.total().calls, len(list(tmp_path.glob("*.meter")))) == (1, 1)
    kill(mine)
    meters(tmp_path, book).settle_once()
    assert book.total().calls == 3
    assert not list(tmp_path.iterdir())


def test_a_settlement_names_its_piece():
    settlement = Settlement("f", 3, WHO, Counters(version=4), Counters(version=10))
    assert settlement.source == "meter:f:3:6"
