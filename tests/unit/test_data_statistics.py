import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelyard.data.datasets import Feature
from modelyard.data.statistics import gather
from modelyard.errors import Invalid


def statistics(feature, values):
    gathered = gather(feature)
    for value in values:
        gathered.add(value)
    return gathered.result()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(-1e9, 1e9))
def test_numbers_are_those_of_numpy_also_far_from_zero(values, offset):
    far = np.array(values) + offset
    known = statistics(Feature(type="float"), far.tolist())
    assert (known["rows"], known["missing"], known["min"], known["max"]) == (len(far), 0, far.min(), far.max())
    assert known["mean"] == pytest.approx(far.mean(), abs=1e-6)
    assert known["std"] == pytest.approx(far.std(), abs=1e-4)


def test_missing_values_are_counted_apart():
    assert statistics(Feature(type="float"), [None, 1.0, None]) == {
        "rows": 3,
        "missing": 2,
        "min": 1.0,
        "max": 1.0,
        "mean": 1.0,
        "std": 0.0,
    }
    assert statistics(Feature(type="int"), [None]) == {"rows": 1, "missing": 1}


def test_labels_are_counted_by_position():
    assert statistics(Feature(type="label", names=("a", "b", "c")), [2, 0, 2]) == {"rows": 3, "counts": [1, 0, 2]}


def test_texts_keep_their_values_while_they_are_few():
    assert statistics(Feature(type="text"), ["b", "aa", None, "b"]) == {
        "rows": 4,
        "missing": 1,
        "longest": 2,
        "values": ["aa", "b"],
    }
    assert "values" not in statistics(Feature(type="text"), map(str, range(51)))


def test_images_know_their_sizes_and_brightness():
    files = []
    for size, grey in (((4, 2), 0), ((6, 3), 255)):
        file = io.BytesIO()
        Image.new("L", size, grey).save(file, "PNG")
        files.append(file.getvalue())
    known = statistics(Feature(type="image"), files)
    assert (known["width"], known["height"], known["modes"]) == ({"min": 4, "max": 6}, {"min": 2, "max": 3}, {"L": 2})
    assert (known["mean"], known["std"]) == pytest.approx((18 / 26, np.sqrt(18 * 8) / 26))
    with pytest.raises(Invalid):
        statistics(Feature(type="image"), [b"nothing"])
