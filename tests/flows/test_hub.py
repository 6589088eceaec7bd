"""Models and datasets are fetched from a hub by its own client: what is wanted, at one commit, and nothing that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import COMMIT, Hub, serving

from modelyard.client.hub import fetched
from modelyard.errors import Forbidden, Invalid, ModelyardError, NotFound, Unavailable

CODE = {"modeling_own.py": b"raise SystemExit", "pytorch_model.bin": b"\x80\x04.", "training_args.bin": b"\x80\x04."}
SHARDS = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 300 for n in (1, 2)}
REPOSITORIES = {
    "tiny/whole": {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"w" * 999, "README.md": b"#", **CODE,
                   "onnx/model.onnx": b"o", "consolidated.safetensors": b"c", "LICENSE": b"free"},
    "tiny/sharded": {"config.json": b"{}", "model.safetensors.index.json": b"{}", **SHARDS, "vocab.txt": b"a"},
    "tiny/pickles": {"config.json": b"{}", **CODE},
    "tiny/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"},
    "tiny/gated": {"config.json": b"{}", "model.safetensors": b"w"},
    "tiny/sentences": {"config.json": b"{}", "model.safetensors": b"w", "modules.json": b"[]", "1_Pooling/config.json": b"{}",
                       "sentence_bert_config.json": b"{}", "2_Dense/model.safetensors": b"d"},
    "datasets/tiny/rows": {"train.jsonl": b'{"a":1}\n', "rows.py": b"raise SystemExit"},
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(REPOSITORIES, gated=("tiny/gated",)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # other tests of this process may have it so
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    """The files that would be uploaded: hidden ones stay behind."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".")}


@pytest.mark.parametrize(
    ("source", "kind", "files"),
    [
        ("hf:tiny/whole", "model", {"config.json", "tokenizer.json", "model.safetensors", "LICENSE"}),
        (f"hf:tiny/whole@{COMMIT}", "model", {"config.json", "tokenizer.json", "model.safetensors", "LICENSE"}),
        ("hf:tiny/sharded@main", "model", {"config.json", "model.safetensors.index.json", "vocab.txt", *SHARDS}),
        (
            "hf:tiny/sentences",
            "model",
            {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"},
        ),
        ("hf:tiny/rows", "dataset", {"train.jsonl"}),
    ],
)
def test_what_is_wanted_is_fetched_at_one_commit(hub: Hub, source: str, kind: str, files: set[str]) -> None:
    name = source.partition("@")[0].removeprefix("hf:")
    repository = REPOSITORIES[name if kind == "model" else f"datasets/{name}"]
    found, pinned = fetched(source, kind, contents)  # type: ignore[arg-type]
    assert found == {path: repository[path] for path in files}
    assert pinned == f"hf:{name}@{COMMIT}"
    assert not [path for path in hub.asked if path.endswith((".py", ".bin", ".onnx"))]


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("hf:tiny/pickles", Invalid, r"could run code .*\(pytorch_model\.bin, training_args\.bin\).* never fetched"),
        ("hf:tiny/adapter", Invalid, r"expected config\.json and model\.safetensors.*adapter_config\.json"),
        ("hf:tiny/gated", Forbidden, "accept them on its page there, then set HF_TOKEN"),
        ("hf:tiny/none", NotFound, "The hub has no 'hf:tiny/none'"),
        ("hf:tiny/whole@v9", NotFound, "names a revision that is not there"),
        ("hf:a/b/c", Invalid, "expected hf:org/name"),
    ],
)
def test_what_cannot_be_fetched_is_said(hub: Hub, source: str, error: type[ModelyardError], said: str) -> None:
    with pytest.raises(error, match=said):
        fetched(source, "model", contents)  # type: ignore[arg-type]


def test_a_hub_that_is_down_or_not_to_be_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="the hub does not answer"):
        fetched("hf:tiny/whole", "model", contents)  # type: ignore[arg-type]
    assert not hub.asked
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.broken = True
    with pytest.raises(Unavailable, match=r"cannot give 'hf:tiny/whole' now \(503\)"):
        fetched("hf:tiny/whole", "model", contents)  # type: ignore[arg-type]
