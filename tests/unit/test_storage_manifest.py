"""The canonical form: what goes in comes out, every change shows in the hash, and nothing unsound can be made."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.storage import CHUNK, FileEntry, Manifest, check_hash, check_path, merkle_root

DIGESTS = st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/\\"), min_size=1, max_size=12)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map("/".join)


@st.composite
def entries(draw):
    chunks = draw(st.lists(DIGESTS, min_size=1, max_size=5))
    low = 0 if len(chunks) == 1 else (len(chunks) - 1) * CHUNK + 1
    return FileEntry.of(draw(st.integers(low, len(chunks) * CHUNK)), chunks)


@st.composite
def manifests(draw):
    files = draw(st.dictionaries(PATHS, entries(), min_size=1, max_size=6))
    try:
        return Manifest(files)
    except Invalid:  # a file that is a folder too, or twice after normalising
        return Manifest({"a": next(iter(files.values()))})


def digest(data):
    return hashlib.sha256(data).hexdigest()


def entry(data):
    return FileEntry.of(len(data), [digest(data)])


@given(manifests())
def test_a_manifest_comes_back_from_its_bytes_with_the_same_hash(manifest):
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.hash == manifest.hash == digest(manifest.to_bytes())
    assert Manifest.from_bytes(json.dumps(json.loads(manifest.to_bytes()), indent=2).encode()).hash == manifest.hash


def test_the_canonical_form_is_fixed_to_the_byte():
    manifest = Manifest({"b/é.txt": entry(b"x"), "a": entry(b"")})
    empty, x = digest(b""), digest(b"x")
    assert manifest.to_bytes().decode() == (
        f'{{"files":{{"a":{{"chunks":["{empty}"],"root":"{empty}","size":0}},'
        f'"b/é.txt":{{"chunks":["{x}"],"root":"{x}","size":1}}}}}}'
    )
    assert manifest.size == 1


@given(manifests())
def test_the_canonical_form_is_plain_sorted_json(manifest):
    tree = {path: {"size": e.size, "root": e.root, "chunks": e.chunks} for path, e in manifest.files.items()}
    plain = json.dumps({"files": tree}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert manifest.to_bytes() == plain.encode()


def test_a_path_that_is_there_twice_and_too_many_files_are_refused():
    one = json.dumps({"a": json.loads(Manifest({"a": entry(b"x")}).to_bytes())["files"]["a"]})[1:-1]
    with pytest.raises(Invalid, match="twice"):
        Manifest.from_bytes(f'{{"files":{{{one},{one}}}}}'.encode())
    with pytest.raises(Invalid, match="more than 100000 files"):
        Manifest.from_bytes(f'{{"files":{{{",".join([one] * 100_001)}}}}}'.encode())


@pytest.mark.parametrize("flood", ["[[],", '{"files":{"a":{"chunks":["a",', '{"files":{"a":[[],', '{"files":[[],'])
def test_what_a_flood_would_fill_memory_with_is_refused_where_it_begins(flood):
    head, _, unit = flood.rpartition("[")
    body = (head + "[" + unit * (8 << 20)).encode()
    tracemalloc.start()
    with pytest.raises(Invalid):
        Manifest.from_bytes(body)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


@given(st.lists(DIGESTS, min_size=1, max_size=9), st.data())
def test_any_changed_swapped_or_added_chunk_changes_the_root(chunks, data):
    root = merkle_root(chunks)
    at = data.draw(st.integers(0, len(chunks) - 1))
    raw = bytearray.fromhex(chunks[at])
    raw[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
    assert merkle_root([*chunks[:at], raw.hex(), *chunks[at + 1 :]]) != root
    assert merkle_root([*chunks, data.draw(DIGESTS)]) != root
    other = data.draw(st.permutations(chunks))
    assert (merkle_root(other) == root) == (other == chunks)


def test_the_root_is_the_tree_that_is_documented():
    one, two, three = (digest(data) for data in (b"1", b"2", b"3"))
    left = digest(b"\x01" + bytes.fromhex(one) + bytes.fromhex(two))
    assert merkle_root([one]) == one
    assert merkle_root([one, two, three]) == digest(b"\x01" + bytes.fromhex(left) + bytes.fromhex(three))


@given(PATHS)
def test_plain_paths_pass(path):
    check_path(path)


@given(PATHS, st.sampled_from(["..", ".", "", "a\0", "a\n", "\x7f", "a\\b", "\ud800", "n" * 256]), st.booleans())
def test_a_path_with_one_bad_part_is_refused(path, bad, first):
    with pytest.raises(Invalid):
        check_path(f"{bad}/{path}" if first else f"{path}/{bad}")


@pytest.mark.parametrize("path", ["", "/", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "é/" * 400 + "x"])
def test_paths_that_leave_or_blur_the_folder_are_refused(path):
    with pytest.raises(Invalid):
        check_path(path)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_what_is_no_hash_is_refused(text):
    with pytest.raises(Invalid):
        check_hash(text)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a", "a/b"), "file and a folder"),
        (("é", "e\u0301"), "twice"),
        (("x/é/y", "x/e\u0301"), "file and a folder"),
        ((), "1 to"),
    ],
)
def test_paths_that_cannot_live_together_are_refused(paths, message):
    with pytest.raises(Invalid, match=message):
        Manifest({path: entry(b"") for path in paths})


def _with(**change):
    return {"files": {"a": {"size": 1, "root": digest(b"x"), "chunks": [digest(b"x")]} | change}}


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        {"files": []},
        {"files": {}, "more": 1},
        {"files": {"a": 1}},
        _with(size=True),
        _with(size=-1),
        _with(size=1.0),
        _with(size=10**18),
        _with(size=CHUNK + 1),
        _with(root=digest(b"y")),
        _with(root=None),
        _with(chunks=[]),
        _with(chunks="x"),
        _with(chunks=[1]),
        _with(chunks=[digest(b"x")] * 2),
        _with(mode=0o777),
    ],
)
def test_unsound_manifests_are_refused(tree):
    with pytest.raises(Invalid):
        Manifest.from_bytes(json.dumps(tree).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b'{"files":{},"files":{}}', b"NaN"])
def test_what_is_no_json_is_refused(data):
    with pytest.raises(Invalid):
        Manifest.from_bytes(data)


def test_a_folder_is_hashed_file_by_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b").write_bytes(b"bb")
    (tmp_path / "a").write_bytes(b"")
    manifest = Manifest.of_folder(tmp_path)
    assert dict(manifest.files) == {"a": entry(b""), "sub/b": entry(b"bb")}


def test_a_large_file_is_cut_into_chunks_and_each_counts(tmp_path: Path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2 * CHUNK + 5)
    before = Manifest.of_folder(tmp_path)
    zero, tail = digest(bytes(CHUNK)), digest(bytes(5))
    assert before.files["big"] == FileEntry(2 * CHUNK + 5, merkle_root([zero, zero, tail]), (zero, zero, tail))
    with (tmp_path / "big").open("r+b") as file:
        file.seek(CHUNK)
        file.write(b"\1")
    after = Manifest.of_folder(tmp_path)
    assert after.hash != before.hash
    assert [old == new for old, new in zip(before.files["big"].chunks, after.files["big"].chunks, strict=True)] == [
        True,
        False,
        True,
    ]


def test_an_empty_folder_is_no_artefact(tmp_path: Path):
    with pytest.raises(Invalid, match="1 to"):
        Manifest.of_folder(tmp_path)
