from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from modelyard.client import transfer
from modelyard.client.wire import Response
from modelyard.errors import Conflict, Damaged, Invalid, NotFound, Unavailable
from modelyard.storage import Manifest
from modelyard.storage.batches import packed, unpacked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source" / "seven").mkdir(parents=True)
    (tmp_path / "source" / "seven" / "a.png").write_bytes(b"a")
    (tmp_path / "source" / "rows.csv").write_bytes(b"x\n1\n")
    return tmp_path / "source"


def test_a_file_goes_under_its_own_name(folder: Path) -> None:
    assert transfer.files_of(folder / "rows.csv") == {"rows.csv": str(folder / "rows.csv")}


def test_a_folder_goes_by_relative_path_without_what_is_hidden(folder: Path) -> None:
    for name in (".DS_Store", "__pycache__/model.pyc", "seven/.hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert list(transfer.files_of(folder)) == ["rows.csv", "seven/a.png"]


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "rows.csv").rename(tmp_path / "elsewhere.csv")
    (folder / "rows.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert transfer.manifest_of(transfer.files_of(folder)).files["rows.csv"].size == 4


def test_nothing_to_upload_is_said(folder: Path) -> None:
    with pytest.raises(Invalid, match="no file or folder"):
        transfer.files_of(folder / "missing")
    (folder / "empty").mkdir()
    with pytest.raises(Invalid, match="no files"):
        transfer.files_of(folder / "empty")


def test_the_hash_is_the_store_s(folder: Path) -> None:
    assert transfer.manifest_of(transfer.files_of(folder)).hash == Manifest.of_folder(folder).hash


def test_a_large_file_is_cut_as_the_store_cuts_it(folder: Path) -> None:
    size = (64 << 20) + 5
    with (folder / "large").open("wb") as file:
        file.truncate(size)
    manifest = transfer.manifest_of({"large": folder / "large"})
    assert manifest == Manifest.of_chunks({"large": size}, manifest.files["large"].chunks)
    first, second = transfer.chunks_of(manifest)
    assert (first.start, first.length, second.start, second.length) == (0, 64 << 20, 64 << 20, 5)
    assert not first.whole


def test_an_empty_file_is_one_empty_chunk(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (chunk,) = transfer.chunks_of(transfer.manifest_of({"empty": tmp_path / "empty"}))
    assert (chunk.length, chunk.whole) == (0, True)


def test_pieces_are_small_and_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 << 12)
    (tmp_path / "f").write_bytes(content)
    got = list(transfer.pieces(tmp_path / "f", 10, (2 << 20) + 1))
    assert [len(piece) for piece in got] == [1 << 20, 1 << 20, 1]
    assert b"".join(got) == content[10 : 11 + (2 << 20)]


class Receiver:
    """Takes uploads: what was asked, in which order, and every chunk that came, by its hash."""

    def __init__(self, there: frozenset[str] = frozenset()) -> None:
        self.there, self.asked, self.blobs, self.lock = there, list[str](), dict[str, bytes](), threading.Lock()

    def exists(self, path: str) -> bool:
        return path.rpartition("/")[2] in self.there

    def send(self, method: str, path: str, *, body: Callable[[], Iterable[bytes]], headers: dict[str, str]) -> Response:
        data = b"".join(body())
        assert headers["Content-Length"] == str(len(data))
        answer = {"hash": Manifest.from_bytes(data).hash} if method == "POST" else {}
        came = dict(unpacked(data)) if path == "/api/blobs" else {path.rpartition("/")[2]: data} if method == "PUT" else {}
        with self.lock:
            self.asked.append(f"{method} {path}")
            self.blobs |= {digest: bytes(content) for digest, content in came.items()}
        return Response(200, {}, json.dumps(answer).encode())


def test_small_files_travel_together_and_large_ones_alone(tmp_path: Path) -> None:
    files = {f"{n:03}": str(n).encode() * (n * 40) for n in range(200)} | {"large": bytes(1 << 20)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    told: list[tuple[int, int]] = []
    receiver = Receiver()
    hash_ = transfer.upload(receiver, transfer.files_of(tmp_path), lambda *done: told.append(done))  # type: ignore[arg-type]
    assert hash_ == Manifest.of_folder(tmp_path).hash
    assert receiver.blobs == {hashlib.sha256(content).hexdigest(): content for content in files.values()}
    alone = f"PUT /api/blobs/sha256/{hashlib.sha256(files['large']).hexdigest()}"
    assert sorted(receiver.asked) == ["POST /api/artefacts", *["PUT /api/blobs"] * 3, alone]
    assert told[-1] == (sum(map(len, files.values())),) * 2


def test_what_the_platform_has_is_not_sent_again(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    receiver = Receiver(frozenset({hashlib.sha256(bytes(1 << 20)).hexdigest()}))
    transfer.upload(receiver, transfer.files_of(tmp_path))  # type: ignore[arg-type]
    assert receiver.asked == ["POST /api/artefacts"]


def test_a_small_file_that_shrinks_meanwhile_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"long")
    (chunk,) = transfer.chunks_of(transfer.manifest_of({"a": tmp_path / "a"}))
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(Invalid, match="'a' changed"):
        transfer._send(Receiver(), {"a": tmp_path / "a"}, [chunk])  # type: ignore[arg-type]


class Platform:
    """A platform that holds one artefact and may lie about it, or lose the connection `breaks` times."""

    def __init__(self, folder: Path, *, lie: bytes | None = None, breaks: int = 0) -> None:
        self.folder, self.lie, self.breaks = folder, lie, breaks
        self.manifest = Manifest.of_folder(folder)
        self.asked: list[str] = []

    def send(self, method: str, path: str) -> Response:
        if not path.startswith("/api/blobs?"):
            return Response(200, {}, self.manifest.to_bytes())
        self.asked.append("together")
        if self.lie == b"":
            raise Damaged("one of the blobs is damaged")
        held = {
            hashlib.sha256(data).hexdigest(): data
            for file in self.folder.rglob("*")
            if file.is_file()
            for data in [file.read_bytes()]
        }
        wanted = unquote(path.partition("=")[2]).split(",")
        return Response(200, {}, b"".join(packed(name, held[name] if self.lie is None else self.lie) for name in wanted))

    def download(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
        self.asked.append(path)
        content = self.lie if self.lie is not None else (self.folder / path.split("/files/")[1]).read_bytes()
        yield content[:1]
        if self.breaks:
            self.breaks -= 1
            raise Unavailable("the connection broke")
        yield content[1:]


def test_a_fetched_artefact_is_whole_and_the_same(folder: Path, tmp_path: Path) -> None:
    platform, told = Platform(folder), []
    target = transfer.fetch(platform, platform.manifest.hash, tmp_path / "here", lambda *p: told.append(p))  # type: ignore[arg-type]
    assert Manifest.of_folder(target) == platform.manifest
    assert told[-1] == (5, 5)


def test_many_small_files_come_together(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(250):
        (source / f"{number}").write_bytes(b"%d" % (number % 200))
    (source / "large").write_bytes(bytes(1 << 20))
    platform = Platform(source)
    target = transfer.fetch(platform, platform.manifest.hash, tmp_path / "here")  # type: ignore[arg-type]
    assert Manifest.of_folder(target) == platform.manifest
    assert [asked.rpartition("/")[2] for asked in sorted(platform.asked)] == ["large", "together", "together", "together"]


def test_a_broken_connection_is_taken_up_again(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (folder / name).write_bytes(bytes(1 << 17))
    platform = Platform(folder, breaks=3)
    target = transfer.fetch(platform, platform.manifest.hash, tmp_path / "here")  # type: ignore[arg-type]
    assert Manifest.of_folder(target) == platform.manifest
    assert len(platform.asked) == 6


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("lie", "said"), [(b"x", "match"), (b"", "match"), (b"longer than it should be", "longer")])
def test_bytes_that_are_not_the_artefact_s_are_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, lie: bytes, said: str, *, several: bool
) -> None:
    if several:
        said = "match"
    else:
        (folder / "seven" / "a.png").unlink()
    platform = Platform(folder, lie=lie)
    with pytest.raises(Damaged, match=said):
        transfer.fetch(platform, platform.manifest.hash, tmp_path / "here")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_blob_that_is_missing_is_told_by_its_file(folder: Path, tmp_path: Path) -> None:
    class Lossy(Platform):
        def send(self, method: str, path: str) -> Response:
            if path.startswith("/api/blobs?"):
                raise NotFound("There is no blob 12ab in this project.")
            return super().send(method, path)

        def download(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
            if path.endswith("/seven/a.png"):
                raise NotFound("There is no file 'seven/a.png'.")
            return super().download(path, headers)

    platform = Lossy(folder)
    with pytest.raises(NotFound, match=r"'seven/a\.png'"):
        transfer.fetch(platform, platform.manifest.hash, tmp_path / "here")  # type: ignore[arg-type]


def test_another_manifest_than_the_one_asked_for_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="manifest"):
        transfer.fetch(Platform(folder), "0" * 64, tmp_path / "here")  # type: ignore[arg-type]


def test_what_is_there_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    platform = Platform(folder)
    with pytest.raises(Conflict):
        transfer.fetch(platform, platform.manifest.hash, folder)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    assert transfer.fetch(platform, platform.manifest.hash, tmp_path / "empty").exists()  # type: ignore[arg-type]
