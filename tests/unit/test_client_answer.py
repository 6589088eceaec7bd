from __future__ import annotations

import json

import numpy as np

from modelyard.client import Answer


def test_an_answer_is_a_mapping_of_its_outputs_and_plain_as_json() -> None:
    text = np.array([["été".encode(), b"\xff"]], dtype=object)
    answer = Answer({"y": np.array([[1.5, 2.0]], np.float32), "text": text}, "digits", "3", "r1")
    assert list(answer) == ["y", "text"]
    assert np.array_equal(answer["y"], [[1.5, 2.0]])
    assert len(answer) == 2
    assert "z" not in answer
    plain = {"y": [[1.5, 2.0]], "text": [["été", "\ufffd"]]}
    assert answer.plain() == plain
    assert json.loads(json.dumps(answer.plain())) == plain
