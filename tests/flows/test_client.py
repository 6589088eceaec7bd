"""What the SDK promises about deployments, on a real platform: what `deploy` returned for is what answers next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from modelyard.client import Yard
from modelyard.errors import NotFound
from modelyard.testing import yard


def linear(file: Path, name: str) -> Path:
    """y = x + x as an .onnx file, whose input is called `name`."""
    x = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", [name, name], ["y"])], "twice", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("yard")
    with yard(folder / "data") as client:
        client.import_model("twice", linear(folder / "one.onnx", "x"))
        client.import_model("twice", linear(folder / "two.onnx", "z"))
        yield client


def test_a_fresh_deployment_answers_at_once_and_not_after_its_end(platform: Yard) -> None:
    for number in range(10):
        name = f"fresh{number}"
        platform.deploy(name, "twice@1")
        assert np.array_equal(platform.predict(name, {"x": [[1, 2]]})["y"], [[2, 4]])
        platform.undeploy(name)
        with pytest.raises(NotFound):
            platform.predict(name, {"x": [[1, 2]]})


def test_after_deploy_the_old_version_answers_no_more(platform: Yard) -> None:
    for version, tensor in [("1", "x"), ("2", "z")] * 3:
        platform.deploy("flip", f"twice@{version}")
        answers = [platform.predict("flip", {tensor: [[1, 2]]}).version for _ in range(5)]
        assert answers == [version] * 5
