from typing import Any

from modelyard.cli.reproduce import reproduced_text


def found(**changes: Any) -> dict[str, Any]:
    whole = {"reference": "cnn@3", "reproduced": "cnn-reproduced@1", "job": "j2", "identical": True}
    return whole | {"tensors": 30, "largest": 0.0, "differences": [], "environment": []} | changes


def test_identical_weights_take_one_line() -> None:
    assert reproduced_text(found()) == "cnn-reproduced@1 (job j2) and cnn@3: weights identical, bit for bit"


def test_differences_are_listed_with_what_differs_around_them() -> None:
    differences = [{"tensor": f"w{n}", "largest": 0.25, "why": None} for n in range(21)]
    differences[0] |= {"largest": None, "why": "only in the first"}
    environment = [{"name": "versions.torch", "first": "2.0", "second": "2.1"}]
    text = reproduced_text(found(identical=False, largest=0.25, differences=differences, environment=environment))
    assert "21 of 30 tensors differ, by 0.25 at most" in text
    assert "only in the first" in text
    assert "… and 1 more" in text
    assert "versions.torch" in text
