"""One real platform, used as a person would: the whole loop, then everything that must be refused."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from modelyard.client import Yard
from modelyard.errors import ModelyardError, NotFound, Unsafe
from modelyard.testing import yard

MODULE = """
from torch import nn

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return self.scale(x)
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with yard(tmp_path_factory.mktemp("yard"), MODELYARD_BODY_LIMIT="1000000") as client:
        yield client


@pytest.fixture(scope="module")
def url(platform: Yard) -> str:
    return platform.profile.url


@pytest.fixture(scope="module")
def key(platform: Yard) -> str:
    return platform.profile.key


@pytest.fixture(scope="module")
def digits(platform: Yard) -> str:
    """The digits, trained for a moment, optimised and served; the deployment's name."""
    assert platform.import_dataset("digits", "sklearn:digits")["version"] == 1
    trained = platform.train("digits-cnn", "digits@1", recipe="image-classifier", ranks=2, epochs=4)
    assert trained["name"] == "digits-cnn"
    best = platform.optimize("digits-cnn@1", max_accuracy_drop=1.0, seconds=0.2)
    assert best["version"] > 1
    assert platform.deploy("digits", "digits-cnn@best")["state"] == "ready"
    return "digits"


@pytest.fixture(scope="module")
def tensors(platform: Yard, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A deployment that takes `x` FP32 [-1, 2] and gives one number a row."""
    import torch

    folder = tmp_path_factory.mktemp("twice")
    (folder / "model.py").write_text(MODULE)
    torch.save({"scale.weight": torch.tensor([[1.0, 2.0]])}, folder / "twice.pth")
    module = f"{folder / 'model.py'}:Twice"
    platform.import_model("twice", folder / "twice.pth", module=module, inputs=["x:FP32[-1,2]"])
    platform.deploy("twice", "twice")
    return "twice"


def image() -> bytes:
    from io import BytesIO

    from PIL import Image
    from sklearn.datasets import load_digits

    out = BytesIO()
    Image.fromarray((load_digits().images[7] * 15.9375).round().astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_the_loop_from_data_to_a_metered_answer(platform: Yard, digits: str, tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(image())
    answer = platform.predict(digits, image=tmp_path / "seven.png")
    assert answer.outputs["label"][0] in (b"7", "7")
    receipt = platform.receipt(answer)
    text = json.dumps(receipt)
    for name in ("digits-cnn@1", "digits@1"):
        assert name in text
    deadline = time.monotonic() + 5
    while not (served := [row for row in platform.usage() if row["kind"] == "serving" and row["subject"] == digits]):
        assert time.monotonic() < deadline, "the call never reached the ledger"
        time.sleep(0.1)
    assert served[0]["calls"] >= 1
    assert served[0]["units"] >= 1
    assert {row["kind"] for row in platform.usage()} == {"serving", "job"}


def test_a_receipt_is_of_the_model_that_answered_whatever_is_served_since(platform: Yard, tensors: str, tmp_path: Path) -> None:
    import torch

    (tmp_path / "model.py").write_text(MODULE)
    torch.save({"scale.weight": torch.tensor([[3.0, 4.0]])}, tmp_path / "other.pth")
    platform.import_model("other", tmp_path / "other.pth", module=f"{tmp_path / 'model.py'}:Twice", inputs=["x:FP32[-1,2]"])
    platform.deploy("moving", "twice@1")
    answer = platform.predict("moving", inputs={"x": [[1, 1]]})
    before = platform.receipt(answer)
    assert (answer.model, before["model"], before["lineage"]["reference"]) == ("twice@1", "twice@1", "twice@1")
    platform.deploy("moving", "other@1")
    again = platform.predict("moving", inputs={"x": [[1, 1]]})
    assert [platform.receipt(of)["model"] for of in (answer, again, "moving")] == ["twice@1", "other@1", "other@1"]
    platform.undeploy("moving")
    assert platform.receipt(answer)["lineage"] == before["lineage"]
    assert platform.receipt(again)["lineage"]["hash"] == platform.version("other@1")["artefact"]


def test_the_same_job_twice_gives_the_same_weights(platform: Yard, digits: str, tmp_path: Path) -> None:
    folders = []
    for number in (1, 2):
        assert platform.train("twin", "digits@1", recipe="image-classifier", ranks=2, epochs=1)["version"] == number
        folders.append(platform.fetch(f"twin@{number}", tmp_path / str(number)))
    (first,) = folders[0].glob("*.safetensors")
    assert first.read_bytes() == (folders[1] / first.name).read_bytes()


def test_a_fetched_model_is_plain_pytorch(platform: Yard, tensors: str, tmp_path: Path) -> None:
    import torch

    folder = platform.fetch("twice@1", tmp_path / "twice")
    space: dict[str, type[torch.nn.Module]] = {}
    exec((folder / "model.py").read_text(), space)
    model = space["Twice"]()
    weights = next(folder.glob("*.pth"))
    model.load_state_dict(torch.load(weights, weights_only=True))
    x = np.array([[1, 2], [3, 4]], dtype=np.float32)
    served = platform.predict(tensors, inputs={"x": x}).outputs
    assert np.allclose(next(iter(served.values())), model(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def infer(url: str, key: str | None, name: str, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v2/models/{name}/infer", content=content, headers={**head, **headers}, timeout=30)


def tensor(name: str = "x", shape: object = (1, 2), datatype: str = "FP32", data: object = (1.0, 2.0)) -> dict[str, object]:
    return {"inputs": [{"name": name, "shape": list(shape), "datatype": datatype, "data": list(data)}]}  # type: ignore[call-overload]


def test_a_right_call(url: str, key: str, tensors: str) -> None:
    reply = infer(url, key, tensors, tensor())
    assert reply.status_code == 200, reply.text
    assert reply.json()["outputs"][0]["data"] == [5.0]
    assert reply.json()["model_name"] == tensors


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (tensor(name="y"), "x"),
        (tensor(shape=(1, 3), data=(1, 2, 3)), "shape"),
        (tensor(datatype="INT64", data=(1, 2)), "FP32"),
        (tensor(data=(1.0,)), "1"),
        (b"this is not JSON", "JSON"),
        ({"inputs": []}, "x"),
        ({}, "inputs"),
    ],
)
def test_wrong_tensors_are_the_callers_fault(url: str, key: str, tensors: str, body: object, says: str) -> None:
    reply = infer(url, key, tensors, body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]


def test_an_oversized_body(url: str, key: str, tensors: str) -> None:
    assert infer(url, key, tensors, b"[" + b" " * 1_000_001).status_code == 413


def test_no_key_and_a_wrong_key(url: str, key: str, tensors: str) -> None:
    assert infer(url, None, tensors, tensor()).status_code == 401
    assert infer(url, key[:-4] + "0000", tensors, tensor()).status_code == 401


def test_an_expired_and_a_revoked_key(platform: Yard, url: str, tensors: str) -> None:
    short = platform.create_key("infer", expires=1)
    assert infer(url, short["key"], tensors, tensor()).status_code == 200
    time.sleep(1.1)
    assert infer(url, short["key"], tensors, tensor()).status_code == 401
    made = platform.create_key("infer")
    assert infer(url, made["key"], tensors, tensor()).status_code == 200
    platform.revoke_key(made["id"])
    time.sleep(1.0)
    assert infer(url, made["key"], tensors, tensor()).status_code == 401


def test_a_key_of_scope_infer_changes_nothing(platform: Yard, url: str, tensors: str) -> None:
    head = {"authorization": f"Bearer {platform.create_key('infer')['key']}"}
    assert httpx.delete(f"{url}/api/deployments/{tensors}", headers=head).status_code == 403
    assert httpx.post(f"{url}/api/keys", json={"scope": "admin"}, headers=head).status_code == 403


def test_another_projects_things_are_not_there(platform: Yard, url: str, tensors: str) -> None:
    stranger = platform.create_project("stranger")["key"]["key"]
    head = {"authorization": f"Bearer {stranger}"}
    assert infer(url, stranger, tensors, tensor()).status_code == 404
    for path in (f"/api/deployments/{tensors}", "/api/models/twice", "/api/models/twice/versions/1", f"/v2/models/{tensors}"):
        assert httpx.get(url + path, headers=head).status_code == 404
    artefact = platform.version("twice@1")["artefact"]
    assert httpx.get(f"{url}/api/artefacts/{artefact}", headers=head).status_code == 404
    assert httpx.get(f"{url}/api/models", headers=head).json() == []


def test_unknown_names_say_what_there_is(platform: Yard, url: str, key: str, tensors: str) -> None:
    with pytest.raises(NotFound, match="'twice'"):
        platform.deploy("other", "twise@1")
    reply = infer(url, key, "twise", tensor())
    assert reply.status_code == 404
    assert "'twice'" in reply.json()["error"]


def test_a_deployment_that_is_not_ready(platform: Yard, url: str, key: str, tensors: str) -> None:
    platform.deploy("slow", "twice", engine="torch", wait=False)
    reply = infer(url, key, "slow", tensor())
    assert reply.status_code == 503
    assert "retry-after" in reply.headers
    platform.undeploy("slow")
    assert infer(url, key, "slow", tensor()).status_code == 404


def test_weights_with_code_are_refused_unread(platform: Yard, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {canary}",)

    (tmp_path / "model.py").write_text(MODULE)
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"scale.weight": Bomb()}))
    with pytest.raises(Unsafe):
        platform.import_model("bomb", tmp_path / "bomb.pth", module=f"{tmp_path / 'model.py'}:Twice")
    assert not canary.exists()


def test_a_failed_job_says_why_and_leaves_nothing(platform: Yard, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ModelyardError, match="line 3"):
        platform.import_dataset("bad", tmp_path / "bad.csv")
    assert "bad" not in [d["name"] for d in platform.datasets()]


def test_open_paths_and_closed_ones(url: str) -> None:
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(url + path).status_code == 200
    for path in ("/metrics", "/v2", "/api/jobs", "/api/openapi.json", "/docs", "/nowhere"):
        assert httpx.get(url + path).status_code in (401, 404)
    assert httpx.get(url + "/metrics").status_code == 401
