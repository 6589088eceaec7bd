from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.conversion.config import ImportModelConfig, parse_module, parse_tensor
from modelyard.engines.base import TensorCard
from modelyard.errors import Invalid
from modelyard.tensors import DATATYPES


@given(
    st.sampled_from(["x", "input_ids", "layer.0/x:0"]),
    st.sampled_from(list(DATATYPES)),
    st.lists(st.just(-1) | st.integers(1, 10**9), min_size=1, max_size=16),
)
def test_a_stated_tensor_is_read(name: str, datatype: str, shape: list[int]) -> None:
    assert parse_tensor(f"{name}:{datatype}{shape}") == TensorCard(name=name, datatype=datatype, shape=tuple(shape))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "states no tensor"),
        ("x", "states no tensor"),
        ("x:FP32", "states no tensor"),
        ("x:FP32[]", "at least the batch"),
        ("x:FP32[-1,0]", "positive number or -1"),
        ("x:FP32[-2]", "positive number or -1"),
        ("x:FP32[1,]", "positive number or -1"),
        ("x:FP32[a]", "states no tensor"),
        ("x:FLOAT[1]", "no datatype 'FLOAT'; there are BOOL"),
        ("1x:FP32[1]", "states no tensor"),
        ("x:FP32[1] y", "states no tensor"),
        ("x:FP32[99999999999]", "positive number"),
        ("x:FP32[" + ",".join(["1"] * 17) + "]", "at most 16"),
    ],
)
def test_a_wrongly_stated_tensor_is_explained(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        parse_tensor(text)


def test_a_module_is_a_file_and_a_class() -> None:
    assert parse_module("src/model.py:SimpleModel") == ("src/model.py", "SimpleModel")
    for wrong in ("model.py", "model:Simple", "../model.py:Simple", "/model.py:Simple", "model.py:1", "model.py:A:B", ""):
        with pytest.raises(Invalid, match="names no module"):
            parse_module(wrong)


def test_the_config_refuses_early_what_the_job_would() -> None:
    with pytest.raises(ValidationError, match="no datatype"):
        ImportModelConfig(inputs=("x:F[1]",))
    with pytest.raises(ValidationError, match="names no module"):
        ImportModelConfig(module="model")
    assert ImportModelConfig(inputs=("x:FP32[-1,10]",)).tensors == (TensorCard(name="x", datatype="FP32", shape=(-1, 10)),)


@pytest.mark.parametrize(
    ("task", "said"), [("banana", "'banana' is no task; there are"), ("text-clasification", "did you mean")]
)
def test_an_unknown_task_is_refused(task: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImportModelConfig(task=task)
    assert ImportModelConfig(task="text-classification").task == "text-classification"
