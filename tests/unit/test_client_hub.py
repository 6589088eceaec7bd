import errno
from contextlib import contextmanager
from fnmatch import fnmatch
from types import SimpleNamespace as Of

import pytest

from modelyard.client import hub
from modelyard.client.hub import _asking, _choose, fetch_dataset
from modelyard.errors import Invalid, Unavailable


class Api:
    """What `_choose` asks of a hub, answered from a table of commits."""

    def __init__(self, **commits: list[str]) -> None:
        self.commits = commits

    def dataset_info(self, name, revision):
        key = {"refs/convert/parquet": "converted", None: "main"}.get(revision, revision)
        return Of(sha=f"sha-{key}", siblings=[Of(rfilename=path) for path in self.commits.get(key, [])])

    def snapshot_download(self, name, *, allow_patterns, local_dir, repo_type, revision):
        for path in self.commits["main"]:
            if not path.endswith("lost.jsonl") and any(fnmatch(path, pattern) for pattern in allow_patterns):
                (local_dir / path).write_text(path)


@pytest.mark.parametrize(
    ("api", "config", "expected"),
    [
        (Api(main=["README.md", "data/train-0.parquet"]), None, ("sha-main", ["data/train-0.parquet"])),
        (Api(main=["x.py"], converted=["default/train/0.parquet"]), None, ("sha-converted", ["default/train/0.parquet"])),
        (Api(main=["a/train.jsonl", "b/train.jsonl"]), "b", ("sha-main", ["b/train.jsonl"])),
    ],
)
def test_which_files_are_fetched(api, config, expected):
    assert _choose(api, "hf:org/name", "org/name", config, None) == expected


@pytest.mark.parametrize(
    ("api", "config", "said"),
    [
        (Api(main=["a/train.jsonl", "b/train.jsonl"]), None, r"several configurations: name one, as hf:org/name/a \(a, b\)"),
        (Api(main=["a/train.jsonl"]), "c", "no configuration 'c'; there are: a"),
        (Api(main=["x.py"]), None, "has no Parquet or JSONL files"),
    ],
)
def test_what_is_not_there_is_said(api, config, said):
    with pytest.raises(Invalid, match=said):
        _choose(api, "hf:org/name", "org/name", config, None)


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"the hub does not answer .*fetch it elsewhere and give the files: --from FOLDER"):
        fetch_dataset("hf:org/name", tmp_path)
    with pytest.raises(Invalid, match="expected hf:org/name"):
        fetch_dataset("hf:a/b/c/d", tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """Makes `fetch_dataset` ask an `Api`."""

    def ask(api):
        @contextmanager
        def asking(source):
            yield api

        monkeypatch.setattr(hub, "_asking", asking)

    return ask


def test_a_file_whose_name_looks_like_a_pattern_is_fetched_and_no_other_for_it(asked, tmp_path):
    asked(Api(main=["train[1].jsonl", "train?.jsonl", "train1.txt", "a*.jsonl", "ab.md"]))
    fetch_dataset("hf:org/name", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a*.jsonl", "train?.jsonl", "train[1].jsonl"]


def test_a_file_that_does_not_come_is_missed(asked, tmp_path):
    asked(Api(main=["train.jsonl", "lost.jsonl"]))
    with pytest.raises(Unavailable, match=r"lists 'lost\.jsonl' in 'org/name' and did not give it"):
        fetch_dataset("hf:org/name", tmp_path)


def test_a_full_disk_is_no_silent_hub():
    pytest.importorskip("huggingface_hub")
    with pytest.raises(Unavailable, match=r"has no room in .*No space left.* set TMPDIR"), _asking("hf:org/name"):
        raise OSError(errno.ENOSPC, "No space left on device")
