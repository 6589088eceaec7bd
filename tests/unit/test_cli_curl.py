from __future__ import annotations

import base64
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modelyard.cli.curl import TINY_PNG, curl_line, sample
from modelyard.client import Profile


def deployment(task: str, *inputs: tuple[str, str, list[int]]) -> dict[str, Any]:
    return {"name": "m", "task": task, "inputs": [{"name": n, "datatype": d, "shape": s} for n, d, s in inputs]}


IMAGES = deployment("image-classification", ("image", "BYTES", [-1]))


def test_the_tiny_image_is_an_image() -> None:
    image = Image.open(io.BytesIO(base64.b64decode(TINY_PNG)))
    image.load()
    assert image.size == (8, 8)


def test_samples_have_one_row_of_the_right_shape() -> None:
    assert sample(IMAGES) == {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [TINY_PNG]}]}
    (tensor,) = sample(deployment("feature-extraction", ("x", "FP32", [-1, 3])))["inputs"]  # type: ignore[index]
    assert tensor == {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}
    columns = sample(deployment("tabular-classification", ("a", "FP32", [-1]), ("b", "BYTES", [-1])))
    assert [tensor["data"] for tensor in columns["inputs"]] == [[0], [""]]  # type: ignore[index]


@pytest.mark.parametrize("tensor", [("x", "FP32", [-1]), ("x", "FP32", [-1, 3, 224, 224]), ("x", "FP16", [-1, 2])])
def test_where_no_sample_can_be_made_there_is_none(tensor: tuple[str, str, list[int]]) -> None:
    assert sample(deployment("feature-extraction", tensor)) is None


def test_the_line_is_one_shell_command_that_reads_the_key_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "my yard" / "profile.json"
    line = curl_line(Profile("http://127.0.0.1:8080", "my_secret", "default", file), IMAGES)
    assert "my_secret" not in line
    words = shlex.split(line)
    assert words[0] == "curl"
    assert "http://127.0.0.1:8080/v2/models/m/infer" in words
    assert json.loads(words[-1]) == sample(IMAGES)
    assert shlex.quote(str(file)) in line


def test_a_key_from_the_environment_stays_there() -> None:
    assert "Bearer $MODELYARD_KEY" in curl_line(Profile("http://127.0.0.1:8080", "my_secret"), IMAGES)


def test_without_a_sample_the_line_asks_what_the_deployment_takes() -> None:
    line = curl_line(Profile("http://127.0.0.1:8080", "k"), deployment("other", ("x", "FP32", [-1])))
    assert shlex.split(line)[-1] == "http://127.0.0.1:8080/v2/models/m"
