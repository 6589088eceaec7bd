"""Five bits become eight without a weight changing, and what lies around them stays."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimisation_language_rounding import matrix

from modelyard.engines.gguf import widen
from modelyard.optimisation.language.rounding import BLOCK, nearest

KINDS = {kind.lower(): gguf.GGMLQuantizationType[kind] for kind in ("Q4_0", "Q5_0", "Q8_0")}


def written(path, kinds, rows=3, columns=2 * BLOCK):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokens", ["a", "bc", ""])
    for at, kind in enumerate(kinds):
        weight = matrix(rows, columns, at, 0.1)
        if kind == "f32":
            writer.add_tensor(f"t{at}", weight[:, :5].numpy().copy())
        else:
            writer.add_tensor(f"t{at}", nearest(weight, kind).packed(), raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["f32", *KINDS]), min_size=1, max_size=5),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
)
def test_no_weight_changes_and_nothing_else(tmp_path_factory, kinds, rows, blocks):
    folder = tmp_path_factory.mktemp("wide")
    path, out = written(folder / "a.gguf", kinds, rows, blocks * BLOCK), folder / "b.gguf"
    assert widen(path, out) == ("q5_0" in kinds)
    if "q5_0" not in kinds:
        assert not out.exists()
        return
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(out)
    assert after.fields["tokens"].contents() == ["a", "bc", ""]
    assert list(after.fields) == list(before.fields)
    for old, new, kind in zip(before.tensors, after.tensors, kinds, strict=True):
        assert (new.name, new.shape.tolist()) == (old.name, old.shape.tolist())
        assert new.tensor_type == (KINDS["q8_0"] if kind == "q5_0" else old.tensor_type)
        values = (gguf.quants.dequantize(each.data, each.tensor_type) for each in (old, new))
        np.testing.assert_array_equal(*values)


def test_what_is_no_gguf_is_no_file_to_widen(tmp_path):
    (tmp_path / "a").write_bytes(b"GGUM" + bytes(60))
    with pytest.raises(ValueError, match="magic"):
        widen(tmp_path / "a", tmp_path / "b")
