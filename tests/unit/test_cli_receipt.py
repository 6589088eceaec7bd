from __future__ import annotations

import re

from modelyard.cli.receipt import receipt_text, tree_text


def unstyled(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


DATASET = {"reference": "digits@1", "kind": "dataset", "hash": "dd" * 32, "job": "j0", "parents": []}
TRAINED = {"reference": "cnn@1", "kind": "model", "hash": "cc" * 32, "job": "j1", "parents": [DATASET]}
CHOSEN = {"reference": "cnn@3", "kind": "model", "hash": "bb" * 32, "job": "j2", "parents": [TRAINED, DATASET]}


def test_a_tree_has_a_version_a_line() -> None:
    lines = tree_text(CHOSEN, {"j2": "optimise"}).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["cnn@3", "├─ cnn@1", "│", "└─ digits@1"]
    assert lines[0].endswith("optimise j2")
    assert lines[1].endswith("job j1")
    assert "bbbbbbbbbbbbbbbb" in lines[0]


def test_a_receipt_says_what_was_used_by_what() -> None:
    usage = [{"kind": "job", "subject": "j1", "calls": 0, "units": 1000, "cpu_seconds": 12.3456}]
    body = {"lineage": CHOSEN, "jobs": [{"id": "j1", "kind": "train"}], "usage": usage}
    last = unstyled(receipt_text(body)).splitlines()[-1].split()
    assert last == ["job", "j1", "train", "0", "1000", "12.35"]
