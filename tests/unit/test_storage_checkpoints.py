"""The newest whole checkpoints and the best one, and only those."""

from pathlib import Path

import pytest

from modelyard.errors import Damaged, Invalid, Unavailable
from modelyard.storage import Artefacts
from modelyard.testing import MemoryStore


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def yard(store, tmp_path):
    return Artefacts(store, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "step/rank 0").mkdir(parents=True)
    return tmp_path / "step"


def put(yard, folder, text, job="j", **policy):
    (folder / "rank 0/state#1").write_text(text)
    return yard.put_checkpoint("p", job, folder, **policy).number


def numbers(store):
    return {key.split("/")[4] for key in store.objects} - {"latest.json"}


def latest(yard, tmp_path, job="j", project="p"):
    found = yard.latest_checkpoint(project, job, tmp_path / "resume")
    return None if found is None else (found / "rank 0/state#1").read_text()


def test_there_is_none_at_first(yard, tmp_path):
    assert latest(yard, tmp_path) is None
    assert not (tmp_path / "resume").exists()


def test_the_newest_is_kept_and_the_older_are_dropped(yard, folder, store, tmp_path):
    assert [put(yard, folder, text) for text in ("one", "two", "three")] == [1, 2, 3]
    assert latest(yard, tmp_path) == "three"
    assert {key.split("/")[4] for key in store.objects} == {"3", "latest.json"}


def test_it_is_told_whether_a_job_had_never_come_so_far(yard, folder):
    put(yard, folder, "one", job="other")
    steps = (3, 3, 5, 1, 4, 5, 6)
    assert [yard.put_checkpoint("p", "j", folder, step=step).further for step in steps] == [
        step in (3, 5, 6) and steps.index(step) == at for at, step in enumerate(steps)
    ]


def test_the_last_few_and_the_best_are_kept(yard, folder, store, tmp_path):
    kept = []
    for score in (0.5, 0.2, 0.2, 0.9, 0.8, None):
        put(yard, folder, str(score), score=score, last=2)
        kept.append(numbers(store))
    assert kept == [{"1"}, {"1", "2"}, {"2", "3"}, {"3", "4"}, {"3", "4", "5"}, {"3", "5", "6"}]
    assert latest(yard, tmp_path) == "None"


def test_where_the_newest_is_damaged_the_one_before_is_taken(yard, folder, store, tmp_path):
    for text in ("one", "two", "three"):
        put(yard, folder, text, last=3)
    for number, harm in (("3", lambda key: store.put(key, b"thr33")), ("2", store.delete)):
        for key in [key for key in store.objects if f"/{number}/" in key]:
            harm(key)
    assert latest(yard, tmp_path) == "one"


def test_one_that_is_superseded_while_it_is_read_gives_way_to_the_newer(yard, folder, store, tmp_path, monkeypatch):
    put(yard, folder, "one")
    size, turns = store.size, ["two"]

    def superseding(key):
        if turns and "/checkpoints/" in key and not key.endswith("latest.json"):
            put(yard, folder, turns.pop(0))
        return size(key)

    monkeypatch.setattr(store, "size", superseding)
    assert latest(yard, tmp_path) == "two"


def test_what_was_written_of_one_that_failed_is_removed(yard, folder, store, tmp_path, monkeypatch):
    put(yard, folder, "one")
    (folder / "second").write_text("more")
    real = store.put

    def full(key, data, **options):
        if b"more" in bytes(data):
            raise Unavailable("the disk is full")
        return real(key, data, **options)

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(Unavailable):
        put(yard, folder, "two")
    assert numbers(store) == {"1"}
    assert latest(yard, tmp_path) == "one"


def test_jobs_with_checkpoints_are_known(yard, folder, store):
    put(yard, folder, "one")
    put(yard, folder, "other", job="jj")
    assert yard.checkpointed("p") == {"j", "jj"}
    assert yard.checkpointed("q") == set()


def test_it_replaces_what_was_there_and_can_be_written_to(yard, folder, tmp_path):
    put(yard, folder, "one")
    latest(yard, tmp_path)
    (tmp_path / "resume/stale").write_text("")
    assert latest(yard, tmp_path) == "one"
    assert not (tmp_path / "resume/stale").exists()
    (tmp_path / "resume/rank 0/state#1").write_text("mine")


def test_jobs_and_projects_do_not_meet(yard, folder, tmp_path):
    put(yard, folder, "one")
    put(yard, folder, "other", job="jj")
    assert latest(yard, tmp_path, project="q") is None
    yard.drop_checkpoints("p", "j")
    assert latest(yard, tmp_path) is None
    assert latest(yard, tmp_path, job="jj") == "other"


@pytest.mark.parametrize("at", range(3))
def test_killed_on_the_way_the_older_one_stands(yard, folder, store, tmp_path, monkeypatch, at):
    put(yard, folder, "one")
    (folder / "second").write_text("more")
    real, left = store.put, [at]

    def dying(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            put(yard, folder, "two")
    assert latest(yard, tmp_path) == "one"
    assert put(yard, folder, "two") == 2
    assert latest(yard, tmp_path) == "two"


def test_damage_is_refused(yard, folder, store, tmp_path):
    put(yard, folder, "one")
    key = next(key for key in store.objects if "/1/" in key)
    store.put(key, b"onE")
    with pytest.raises(Damaged, match="state#1"):
        latest(yard, tmp_path)
    for record in (b"", b"[]", store.get("projects/p/checkpoints/j/latest.json").replace(b"state#1", b"state#2")):
        store.put("projects/p/checkpoints/j/latest.json", record)
        with pytest.raises(Damaged, match="record"):
            latest(yard, tmp_path)


def test_dropping_twice_is_fine(yard, folder, store):
    put(yard, folder, "one")
    yard.drop_checkpoints("p", "j")
    yard.drop_checkpoints("p", "j")
    assert store.objects == {}


def test_a_job_is_a_word_and_a_checkpoint_holds_no_links(yard, folder):
    with pytest.raises(Invalid):
        put(yard, folder, "x", job="../j")
    (folder / "link").symlink_to(Path("/etc"))
    with pytest.raises(Invalid, match="link"):
        put(yard, folder, "x")
