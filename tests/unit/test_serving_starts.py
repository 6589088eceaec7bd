"""Artefacts on their way: nobody waits for them, and what went wrong is told."""

from __future__ import annotations

import threading
from pathlib import Path

from modelyard.errors import Damaged
from modelyard.serving import starts as module
from modelyard.serving.starts import Starts


def test_what_is_slow_keeps_nobody_waiting():
    news, slow, went = threading.Semaphore(0), threading.Event(), []
    starts = Starts(news.release)
    starts.begin("slow", lambda: (slow.wait(20), Path("/slow"))[1], went.append)
    starts.begin("quick", lambda: Path("/quick"), went.append)
    assert news.acquire(timeout=20)
    [arrival] = starts.come()
    assert (arrival.token, arrival.folder) == ("quick", Path("/quick"))
    assert "slow" in starts
    assert "quick" not in starts
    slow.set()
    assert news.acquire(timeout=20)
    assert [arrival.token for arrival in starts.come()] == ["slow"]
    assert starts.come() == []


def test_what_went_wrong_is_told():
    def fetch():
        raise Damaged("one byte was flipped")

    news = threading.Semaphore(0)
    starts = Starts(news.release)
    starts.begin("a", fetch, lambda folder: None)
    assert news.acquire(timeout=20)
    [arrival] = starts.come()
    assert arrival.folder is None
    assert isinstance(arrival.error, Damaged)


def test_only_so_many_are_fetched_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "_AT_A_TIME", 2)
    news, go, lock, most, now = threading.Semaphore(0), threading.Event(), threading.Lock(), [0], [0]

    def fetch():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        go.wait(20)
        with lock:
            now[0] -= 1
        return Path("/x")

    starts = Starts(news.release)
    for number in range(6):
        starts.begin(str(number), fetch, lambda folder: None)
    go.set()
    for _ in range(6):
        assert news.acquire(timeout=20)
    assert most[0] <= 2
