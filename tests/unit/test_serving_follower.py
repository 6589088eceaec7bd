"""The follower loads when the revision moved, at once when asked, and knows how long the database is out of sight."""

from __future__ import annotations

import threading

from serving_fakes import FakeLoop

from modelyard.serving.follower import PATIENCE, Follower, State


class Books:
    def __init__(self):
        self.number, self.loads, self.looks, self.broken = 1, 0, 0, False
        self.looked = threading.Condition()
        self.hangs = threading.Event()
        self.hangs.set()

    def revision(self):
        with self.looked:
            self.looks += 1
            self.looked.notify_all()
        assert self.hangs.wait(10)
        if self.broken:
            raise ConnectionError
        return self.number

    def load(self):
        self.loads += 1
        if self.broken:
            raise ConnectionError
        return State(self.number, [], [])

    def wait(self, looks):
        with self.looked:
            assert self.looked.wait_for(lambda: self.looks >= looks, 10)


def follower(books, every=60.0):
    loop, applied = FakeLoop(), []
    return loop, applied, Follower(loop, books.load, books.revision, applied.append, every=every)


def test_it_looks_before_it_starts():
    books = Books()
    loop, applied, mine = follower(books)
    assert mine.age == float("inf")
    mine.start()
    loop.settle()
    assert [state.revision for state in applied] == [1]
    assert mine.age < 10
    mine.stop()


def test_it_loads_only_what_moved():
    books = Books()
    loop, applied, mine = follower(books, every=0.01)
    mine.start()
    books.wait(3)
    assert books.loads == 1
    books.number = 2
    books.wait(books.looks + 2)
    mine.stop()
    loop.settle()
    assert [state.revision for state in applied] == [1, 2]


def test_who_asks_is_told_after_what_was_found_is_in_force():
    books = Books()
    loop, applied, mine = follower(books)
    mine.start()
    books.number = 2
    seen, told = [], threading.Event()

    def done(found):
        assert found
        seen.append([state.revision for state in applied])
        told.set()

    mine.refresh(done)
    mine.refresh(done)
    while not told.is_set():
        loop.settle()
    mine.stop()
    loop.settle()
    assert seen == [[1, 2], [1, 2]]


def test_a_flood_of_askers_shares_looks():
    books = Books()
    loop, _, mine = follower(books)
    mine.start()
    told = []
    for _ in range(2000):
        mine.refresh(told.append)
    while len(told) < 2000:
        loop.settle()
    mine.stop()
    assert books.looks < 20


def test_a_database_out_of_sight_ages_and_comes_back():
    books = Books()
    loop, applied, mine = follower(books, every=0.01)
    mine.start()
    books.broken = True
    books.wait(books.looks + 3)
    seen = mine._seen
    books.wait(books.looks + 3)
    assert mine._seen == seen
    books.broken = False
    books.number = 5
    books.wait(books.looks + 2)
    assert mine._seen > seen
    mine.stop()
    loop.settle()
    assert applied[-1].revision == 5


def test_askers_are_told_also_when_the_look_failed():
    books = Books()
    loop, _, mine = follower(books)
    mine.start()
    books.broken = True
    told = []
    mine.refresh(told.append)
    while not told:
        loop.settle()
    mine.stop()
    assert told == [False]


def test_askers_do_not_wait_for_a_look_that_hangs():
    books, go = Books(), threading.Event()
    loop, _, mine = follower(books)
    mine.start()
    books.hangs = go
    told, looks = [], books.looks
    mine.refresh(told.append)
    books.wait(looks + 1)
    [(delay, late, args)] = loop.later
    assert (delay, told) == (PATIENCE, [])
    late(*args)
    assert told == [False]
    go.set()
    mine.stop()
    loop.settle()
    assert told == [False]


def test_without_a_database_it_starts_all_the_same():
    books = Books()
    books.broken = True
    _, applied, mine = follower(books)
    mine.start()
    mine.stop()
    assert mine.age == float("inf")
    assert not applied
