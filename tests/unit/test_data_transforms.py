import numpy as np
import pytest

from modelyard.data.transforms import build, classify, softmax
from modelyard.errors import Internal, NotFound


def test_none_is_the_identity():
    tensors = {"x": np.ones((2, 3))}
    transform = build(None)
    assert transform.config == {"name": "tensor"}
    assert transform.before(tensors) == tensors == transform.after(tensors)


def test_an_unknown_transform_says_what_there_is():
    with pytest.raises(NotFound, match=r"No transform 'imgae'. Did you mean 'image'"):
        build({"name": "imgae"})


def test_softmax_is_stable_and_sums_to_one():
    scores = softmax(np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32))
    assert scores.dtype == np.float32
    assert np.allclose(scores, [[1, 0, 0], [1 / 3] * 3])


def test_classify_names_the_most_likely():
    answer = classify(np.array([[0, 2], [1, 0]], np.float32), ["no", "yes"])
    assert list(answer["label"]) == [b"yes", b"no"]
    assert np.allclose(answer["scores"].sum(axis=1), 1)


def test_another_number_of_logits_is_the_models_fault():
    with pytest.raises(Internal, match=r"shape \[1, 3\] where \[n, 2\] .*was expected"):
        classify(np.zeros((1, 3), np.float32), ["no", "yes"])
