"""What an archive of torch.export may hold, and that nothing else is read of it."""

from __future__ import annotations

import contextlib
import copy
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_programs import BATCH, LEAF, container, entries, meta, node, size, tensor, write

from modelyard.engines.programs import Archive, Limit, read
from modelyard.errors import Invalid, Unsafe
from modelyard.tensors import TensorSpec

Entries = dict[str, Any]


def parsed(path: Path) -> Any:
    with Archive(path) as archive:
        return read(archive)


def module(content: Entries) -> Any:
    return content["models/model.json"]["graph_module"]


def call(content: Entries) -> Any:
    return module(content)["module_call_graph"][0]["signature"]


def changed(change: Callable[[Entries], object]) -> Entries:
    content = entries()
    change(content)
    return content


def test_what_it_takes_and_gives(tmp_path: Path) -> None:
    found = parsed(write(tmp_path / "m.pt2", entries()))
    assert found.signature.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert found.signature.outputs == (TensorSpec("output", "FP32", (-1, 2)),)
    assert [(held.name, held.place) for held in found.held] == [("w", "data/weights/weight_0")]
    assert (found.takes, found.gives, found.limits) == (("x",), ("y",), ())


def mapping(*names: str) -> dict[str, Any]:
    return container("dict", *[LEAF for _ in names], context=json.dumps(names))


@pytest.mark.parametrize(
    ("taken", "given_back", "names"),
    [
        (mapping("pixels"), mapping("scores"), ("pixels", "scores")),
        (container("tuple", LEAF), container("tuple", LEAF), ("x", "output_0")),
        (mapping("a b"), LEAF, None),
        (mapping("__class__.__init__()"), LEAF, None),
        (LEAF, container("dict", LEAF, context='[{"__enum__": 1, "fqn": "os:x", "name": "y"}]'), None),
        (LEAF, container("dict", LEAF, context="nothing"), None),
        (container("tuple", LEAF, LEAF), LEAF, None),
    ],
)
def test_tensors_are_named_by_the_call(tmp_path: Path, taken: Any, given_back: Any, names: tuple[str, str] | None) -> None:
    def name(content: Entries) -> None:
        arguments = container("tuple", container("tuple", taken), container("dict", context="[]"))
        call(content).update(in_spec=json.dumps([1, arguments]), out_spec=json.dumps([1, given_back]))

    path = write(tmp_path / "m.pt2", changed(name))
    if names is None:
        with pytest.raises(Invalid):
            parsed(path)
    else:
        signature = parsed(path).signature
        assert (signature.inputs[0].name, signature.outputs[0].name) == names


@pytest.mark.parametrize(
    ("expression", "low", "high", "said"),
    [
        (BATCH, 0, None, None),
        ("s77", 2, None, None),
        (BATCH, 3, None, "takes at least 3 rows alone"),
        (BATCH, 2, 64, "0 to 64 rows"),
        (f"Mul(Integer(2), {BATCH})", 2, None, "follows from another"),
    ],
)
def test_the_batch_is_open_for_every_size(
    tmp_path: Path, expression: str, low: int, high: int | None, said: str | None
) -> None:
    def bound(content: Entries) -> None:
        content["models/model.json"]["range_constraints"]["s77"] = {"min_val": low, "max_val": high}
        module(content)["graph"]["tensor_values"]["x"] = meta(expression, 3) | {"strides": [size(3), size(1)]}

    path = write(tmp_path / "m.pt2", changed(bound))
    if said is None:
        assert parsed(path).signature.inputs[0].shape == (-1, 3)
    else:
        with pytest.raises(Invalid, match=said):
            parsed(path)


def test_other_dims_keep_their_bounds(tmp_path: Path) -> None:
    def bound(content: Entries) -> None:
        content["models/model.json"]["range_constraints"]["s1"] = {"min_val": 2, "max_val": 9}
        module(content)["graph"]["tensor_values"]["x"]["sizes"][1] = size("Symbol('s1', integer=True)")

    assert parsed(write(tmp_path / "m.pt2", changed(bound))).limits == (Limit("x", 1, 0, 9),)


def target(name: str) -> Callable[[Entries], object]:
    return lambda content: module(content)["graph"]["nodes"].append(node(name, "z", text={"as_string": "touch canary"}))


def expression(text: str) -> Callable[[Entries], object]:
    return lambda content: module(content)["graph"]["sym_int_values"].update(s=size(text))


def spec(text: str) -> Callable[[Entries], object]:
    return lambda content: call(content).update(in_spec=text)


def in_weights(**fields: Any) -> Callable[[Entries], object]:
    return lambda content: content["data/weights/model_weights_config.json"]["config"]["w"].update(fields)


def named(text: str) -> Callable[[Entries], object]:
    def change(content: Entries) -> None:
        renamed = json.loads(json.dumps(content["models/model.json"]).replace('"x"', json.dumps(text)))
        content["models/model.json"] = renamed

    return change


DEFAULT = {"default_factory_module": "os", "default_factory_name": "abort", "dict_context": []}
CODE = {
    "pickled weight": in_weights(use_pickle=True),
    "pickled constant": lambda c: c["data/constants/model_constants_config.json"]["config"].update(
        k={"path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    ),
    "script object": lambda c: c.update({"data/constants/custom_obj_0": b"x"}),
    "opaque object": lambda c: c.update({"data/constants/opaque_obj_0": b"x"}),
    "weights of old": lambda c: c.update({"data/weights/model.pt": b"x"}),
    "constants of old": lambda c: c.update({"data/constants/model.pt": b"x"}),
    "library": lambda c: c.update({"data/aotinductor/model/evil.so": b"\x7fELF"}),
    "another program": lambda c: c.update({"models/other.json": b"{}"}),
    "torch's namespace": target("torch.hub.load"),
    "os by torch": target("torch.os.system"),
    "torch.load": target("torch.load"),
    "operator": target("_operator.attrgetter"),
    "extension": target("#evil:run"),
    "custom operator": target("torch.ops.evil.run.default"),
    "library loader": target("torch.ops.load_library"),
    "deeper": target("torch.ops.aten.add.Tensor.__class__"),
    "files": target("torch.ops.aten.from_file.default"),
    "indices that are believed": target("torch.ops.aten.segment_reduce.default"),
    "a kernel of gradients": target("torch.ops.aten.max_pool2d_with_indices_backward.default"),
    "a layout of torch's own": target("torch.ops.aten.mkldnn_linear.default"),
    "no operator": target("torch.ops.aten"),
    "evaluated size": expression("__import__('os').system('touch canary')"),
    "attribute": expression("s0.__class__"),
    "builtin": expression("exec('1')"),
    "lambda": expression("(lambda: 1)()"),
    "text": expression("'s0' + 'a b'"),
    "endless size": expression("s0+" * 1000 + "s0"),
    "tower": expression("Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
    "powers of powers": expression("Pow(Add(Pow(Integer(9), Integer(9)), Integer(1)), Integer(9))"),
    "power": expression("9**9"),
    "long number": expression("9" * 30),
}
BROKEN = {
    "graph in a graph": target("torch.ops.higher_order.cond"),
    "placeholder": named("x):\n  import os\n#"),
    "keyword": lambda c: module(c)["graph"]["nodes"][0]["inputs"][0].update(name="self=print(1), x"),
    "parameter's name": lambda c: module(c)["signature"]["input_specs"][0]["parameter"].update(parameter_name="w'); x('"),
    "a way out": in_weights(path_name="../../../etc/passwd"),
    "an entry that is not there": lambda c: c.pop("data/constants/model_constants_config.json"),
    "no weights": lambda c: c["data/weights/model_weights_config.json"]["config"].clear(),
    "an import": spec(json.dumps([1, {"type": "collections.defaultdict", "context": DEFAULT, "children_spec": []}])),
    "a class": spec(json.dumps([1, container("tuple", {**LEAF, "type": "evil.Class", "context": ""}, container("dict"))])),
    "no call": lambda c: module(c)["module_call_graph"].clear(),
    "object": lambda c: module(c)["signature"]["input_specs"].append({"custom_obj": {}}),
    "state": lambda c: module(c)["signature"]["output_specs"].append({"buffer_mutation": {"arg": {"name": "y"}}}),
    "a constant": lambda c: module(c)["signature"]["input_specs"][1]["user_input"].update(arg={"as_int": 3}),
    "other inputs": lambda c: module(c)["graph"]["inputs"].reverse(),
    "half floats of torch's": lambda c: module(c)["graph"]["tensor_values"]["x"].update(dtype=13),
    "no dims": lambda c: module(c)["graph"]["tensor_values"].update(y=meta()),
    "nothing given": lambda c: module(c)["signature"]["output_specs"].clear(),
    "formless": lambda c: module(c)["graph"]["tensor_values"].pop("y"),
    "other schema": lambda c: c["models/model.json"]["schema_version"].update(major=9),
    "other archive": lambda c: c.update(archive_version=b"1"),
    "no JSON": lambda c: c.update({"models/model.json": b"{"}),
    "no text": lambda c: c.update({"models/model.json": b'{"\xff": 1}'}),
    "deep": lambda c: c.update({"models/model.json": b'{"graph_module":' + b"[" * 100_000}),
}


@pytest.mark.parametrize("what", CODE)
def test_what_torch_would_run_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(Unsafe):
        parsed(write(tmp_path / "m.pt2", changed(CODE[what])))


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_program_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    with pytest.raises(Invalid) as caught:
        parsed(write(tmp_path / "m.pt2", changed(BROKEN[what])))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 600


def test_an_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsafe, match=r"'m\.pt2' was refused unread: it calls torch\.ops\.evil\.run\.default; only ATen's"):
        parsed(write(tmp_path / "m.pt2", changed(target("torch.ops.evil.run.default"))))
    with pytest.raises(Invalid, match=r"torch\.ops\.higher_order\.cond, which runs a graph inside the graph"):
        parsed(write(tmp_path / "m.pt2", changed(target("torch.ops.higher_order.cond"))))


@pytest.mark.parametrize("root", ["", "/", "../", "a/../", "a\\b/", "./", "a/./", "model/../../"])
def test_entries_lie_under_one_plain_root(tmp_path: Path, root: str) -> None:
    with pytest.raises(Unsafe):
        parsed(write(tmp_path / "m.pt2", entries(), root))


@pytest.mark.parametrize("name", ["other/archive_format", "model/extra/../../x", "model/../x", "/etc/passwd", "model/extra//x"])
def test_an_entry_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.pt2", entries())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(Unsafe):
        parsed(path)


def test_a_bomb_is_refused_before_it_swells(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", entries())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_1", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(Unsafe, match="packed or repeated"):
        parsed(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", entries())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/models/model.json", b"{}")
    with pytest.raises(Unsafe, match="packed or repeated"):
        parsed(path)


def test_an_entry_that_says_it_is_larger_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", entries())
    whole, lie = path.read_bytes(), (1 << 31).to_bytes(4, "little")
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"model/data/weights/weight_0"))
    path.write_bytes(whole[: at + 20] + lie * 2 + whole[at + 28 :])
    with pytest.raises(Unsafe, match="packed or repeated"):
        parsed(path)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


WHOLE = entries()
PLACES = [(place, *path) for place, data in WHOLE.items() if isinstance(data, dict) for path in leaves(data) if path]
LIES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from([[], {}, [1], {"as_int": 1}, {"as_name": "x"}, {"as_tensor": {"name": "y"}}, tensor("x"), meta(3), BATCH]),
)


@given(at=st.sampled_from(PLACES), lie=LIES, drop=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_anywhere_it_is_read_or_refused(tmp_path: Path, at: tuple[Any, ...], lie: Any, drop: bool) -> None:
    content = copy.deepcopy(WHOLE)
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    if drop:
        del inner[at[-1]]
    else:
        inner[at[-1]] = lie
    try:
        found = parsed(write(tmp_path / "m.pt2", content))
    except Invalid:
        return
    assert [len(found.signature.inputs), len(found.signature.outputs)] == [len(found.takes), len(found.gives)]


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_are_wrong_it_is_read_or_refused(tmp_path: Path, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(write(tmp_path / "m.pt2", WHOLE).read_bytes())
    for place, byte in flips:
        data[-1 - place % len(data)] = byte
    (tmp_path / "m.pt2").write_bytes(data[: len(data) - cut] if cut < 40 else data)
    with contextlib.suppress(Invalid):
        parsed(tmp_path / "m.pt2")
