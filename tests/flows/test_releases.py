"""Deployments in use on a real platform: moved without a lost call, tried beside what serves, taken back by themselves, asleep
and awake, hung and replaced, and more of them than the machine has room for."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from modelyard.client import Yard
from modelyard.errors import Internal, ModelyardError
from modelyard.testing import yard

MODULE = """
import time
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        {odd}
        return self.scale(x)
"""
# What a version does that is no better: fails for one row in five, or never answers a certain one.
FAILS = "assert int(x[0, 0]) % 5 != 3, 'no such fifths'"
HANGS = "time.sleep(3600) if float(x[0, 0]) == 666 else None"


def scaled(path: Path, scale: float) -> Path:
    """y = scale · x as an ONNX graph."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def odd(platform: Yard, name: str, folder: Path, does: str) -> None:
    """Import y = x as a torch module that also does something else."""
    folder.mkdir()
    (folder / "model.py").write_text(MODULE.format(odd=does))
    torch.save({"scale.weight": torch.ones(1, 1)}, folder / "w.pth")
    platform.import_model(name, folder / "w.pth", module=f"{folder / 'model.py'}:Model", inputs=["x:FP32[-1,1]"])


def until(said: Callable[[], bool], patience: float = 30.0) -> None:
    gives_up = time.monotonic() + patience
    while not said():
        assert time.monotonic() < gives_up, "it did not come to that"
        time.sleep(0.05)


def key(platform: Yard) -> dict[str, str]:
    return {"Authorization": f"Bearer {platform.profile.key}"}


def ask(platform: Yard, name: str, value: float = 1.0) -> tuple[float, str]:
    answer = platform.predict(name, {"x": np.array([[value]], np.float32)})
    [output] = answer.values()
    return float(output[0, 0]), answer.version


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("releases")
    with yard(folder / "yard", "--grpc", MODELYARD_CALL_TIMEOUT="5") as client:
        for version in (1, 2, 3, 4):
            client.import_model("m", scaled(folder / f"{version}.onnx", 1.0 if version < 4 else -1.0))
        yield client


def test_a_deployment_moves_from_version_to_version_without_a_lost_call(platform: Yard) -> None:
    platform.deploy("rolling", "m@1", replicas=2)
    stop, failures, answered = threading.Event(), list[str](), Counter[str]()

    def call() -> None:
        with Yard(platform.profile.url, platform.profile.key) as caller:
            while not stop.is_set():
                try:
                    answered[ask(caller, "rolling")[1]] += 1
                except ModelyardError as error:
                    failures.append(error.message)

    with ThreadPoolExecutor(4) as pool:
        calling = [pool.submit(call) for _ in range(4)]
        for reference in ("m@2", "m@3"):
            platform.deploy("rolling", reference, replicas=2)
        shown = platform.rollback("rolling")
        platform.deploy("rolling", shown["model"], replicas=1)
        stop.set()
        for one in calling:
            one.result()
    assert failures == []
    assert shown["model"] == "m@2"
    assert shown["previous"] == "m@3"
    assert set(answered) == {"1", "2", "3"}


def test_a_canary_is_given_its_share_and_promoted_it_has_all(platform: Yard) -> None:
    platform.deploy("birds", "m@1")
    shown = platform.deploy("birds", "m@2", canary=20)
    assert (shown["model"], shown["trial"]["model"], shown["trial"]["state"]) == ("m@1", "m@2", "ready")
    assert Counter(ask(platform, "birds")[1] for _ in range(100)) == {"1": 80, "2": 20}
    pinned = platform.predict("birds", {"x": np.ones((1, 1), np.float32)}, version="2")
    assert pinned.version == "2"
    platform.feedback(pinned, score=1.0)
    until(lambda: platform.deployment("birds")["trial"]["calls"] == 20)
    assert platform.promote("birds")["model"] == "m@2"
    assert {ask(platform, "birds")[1] for _ in range(10)} == {"2"}


def test_a_shadow_that_answers_otherwise_is_taken_back_and_nobody_saw_it(platform: Yard) -> None:
    platform.deploy("shade", "m@1")
    platform.deploy("shade", "m@4", shadow=100)
    gives_up = time.monotonic() + 60
    while platform.deployment("shade")["trial"] and time.monotonic() < gives_up:
        for _ in range(10):
            assert ask(platform, "shade") == (1.0, "1")
    shown = platform.deployment("shade")
    assert shown["trial"] is None
    assert "m@4: Rolled back. The shadow answered differently in" in shown["note"]
    [entry] = [e for e in platform.audit() if e["action"] == "deployment.rollback" and e["subject"] == "shade"]
    assert entry["key"] == ""  # by itself
    used = {row["version"]: row for row in platform.usage() if row["subject"] == "shade"}
    assert used["m@4"]["calls"] == 0
    assert used["m@4"]["units"] > 0


def test_a_canary_that_fails_is_taken_back(platform: Yard, tmp_path: Path) -> None:
    odd(platform, "sick", tmp_path / "sick", FAILS)
    platform.deploy("mine", "m@1")
    platform.deploy("mine", "sick@1", engine="torch", canary=50)
    gives_up = time.monotonic() + 60
    while platform.deployment("mine")["trial"] and time.monotonic() < gives_up:
        for value in range(20):
            with contextlib.suppress(Internal):
                ask(platform, "mine", value)
    shown = platform.deployment("mine")
    assert shown["trial"] is None
    assert "sick@1: Rolled back. The canary failed in" in shown["note"]
    until(lambda: "trial" not in httpx.get(f"{platform.profile.url}/v2/models/mine/ready", headers=key(platform)).json())
    assert [ask(platform, "mine", value)[0] for value in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_trial_that_cannot_be_served_changes_nothing(platform: Yard, tmp_path: Path) -> None:
    odd(platform, "dud", tmp_path / "dud", "pass")
    platform.deploy("duds", "m@1")
    assert platform.profile.file is not None
    code = (tmp_path / "dud" / "model.py").read_bytes()
    blobs = [path for path in (platform.profile.file.parent / "store").rglob("*") if path.is_file()]
    [blob] = [path for path in blobs if path.read_bytes() == code]
    blob.chmod(0o600)
    blob.write_bytes(code.replace(b"class", b"klass"))
    with pytest.raises(ModelyardError, match="goes on as before"):
        platform.deploy("duds", "dud@1", engine="torch", canary=10)
    assert ask(platform, "duds") == (1.0, "1")
    until(lambda: platform.deployment("duds")["trial"] is None)
    assert "It could not be served" in platform.deployment("duds")["note"]


def test_what_nobody_calls_sleeps_and_a_call_with_a_key_wakes_it(platform: Yard) -> None:
    [replica] = platform.deploy("dormouse", "m@1", min_replicas=0, idle=1.0)["replicas"]
    assert ask(platform, "dormouse") == (1.0, "1")
    until(lambda: platform.deployment("dormouse")["state"] == "asleep" and not platform.deployment("dormouse")["replicas"])
    assert not Path(f"/proc/{replica['pid']}").exists()
    url = f"{platform.profile.url}/v2/models/dormouse"
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    assert httpx.post(f"{url}/infer", json=body).status_code == 401
    assert httpx.get(f"{url}/ready", headers=key(platform)).status_code == 200
    time.sleep(0.5)
    assert platform.deployment("dormouse")["state"] == "asleep"
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: ask(platform, "dormouse"), range(8))) == [(1.0, "1")] * 8
    assert time.monotonic() - began < 5
    assert len(platform.deployment("dormouse")["replicas"]) == 1


def test_calls_by_grpc_are_held_until_what_sleeps_is_awake(platform: Yard) -> None:
    platform.deploy("loir", "m@1", min_replicas=0, idle=1.0)
    until(lambda: platform.deployment("loir")["state"] == "asleep" and not platform.deployment("loir")["replicas"])
    inputs = triton.InferInput("x", [1, 1], "FP32")
    inputs.set_data_from_numpy(np.ones((1, 1), np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{(httpx.URL(platform.profile.url).port or 0) + 1}") as client:
        for headers in ({}, {"authorization": "Bearer my_no_key"}):
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                client.infer("loir", [inputs], headers=headers)
        assert platform.deployment("loir")["state"] == "asleep"
        headers = {"authorization": key(platform)["Authorization"]}
        assert client.is_model_ready("loir", headers=headers)  # as good as: a call waits until it is
        assert platform.deployment("loir")["state"] == "asleep"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.infer("loir", [inputs], headers=headers), range(8)))
    assert [answer.as_numpy("y").tolist() for answer in answers] == [[[1.0]]] * 8
    assert len(platform.deployment("loir")["replicas"]) == 1


def test_a_replica_that_hangs_is_replaced(platform: Yard, tmp_path: Path) -> None:
    odd(platform, "stuck", tmp_path / "stuck", HANGS)
    [before] = platform.deploy("stuck", "stuck@1", engine="torch")["replicas"]
    assert ask(platform, "stuck") == (1.0, "1")
    with pytest.raises(ModelyardError):
        ask(platform, "stuck", 666)

    said = set[str]()

    def replaced() -> bool:
        shown = platform.deployment("stuck")
        said.add(str(shown["error"]))
        ready = [replica for replica in shown["replicas"] if replica["state"] == "ready"]
        return bool(ready) and ready[0]["token"] != before["token"]

    until(replaced)
    assert [why for why in said if "The model computed nothing for" in why], said
    assert ask(platform, "stuck") == (1.0, "1")
    with pytest.raises(ProcessLookupError):
        os.kill(before["pid"], 0)


def test_the_same_question_is_answered_from_memory_for_who_asked_it(platform: Yard) -> None:
    platform.deploy("parrot", "m@1", cache=True)
    before = ask(platform, "parrot", 3.0)
    assert [ask(platform, "parrot", 3.0) for _ in range(5)] == [before] * 5
    platform.deploy("parrot", "m@4", cache=True)
    assert ask(platform, "parrot", 3.0) == (-3.0, "4")
    until(lambda: sum(row["calls"] for row in platform.usage() if row["subject"] == "parrot") == 7)
    assert sum(row["units"] for row in platform.usage() if row["subject"] == "parrot") == 2


def test_more_deployments_are_offered_than_there_is_room_for(tmp_path: Path) -> None:
    with yard(tmp_path / "yard", MODELYARD_SERVING_REPLICAS="2") as small:
        small.import_model("m", scaled(tmp_path / "m.onnx", 1.0))
        for name in ("a", "b", "c"):
            small.deploy(name, "m@1", min_replicas=0)
        stay = []
        for name in ("a", "b", "a", "c", "b"):  # what was called longest ago makes room, not what woke first or was called last
            assert ask(small, name) == (1.0, "1")
            time.sleep(0.7)  # until it is written down who was called
            there = small.deployments()
            stay.append({d["name"] for d in there if any(r["state"] == "ready" for r in d["replicas"])})
        assert stay == [{"a", "c"}, {"a", "b"}, {"a", "b"}, {"a", "c"}, {"b", "c"}]
        small.deploy("fixed", "m@1", replicas=3, wait=False)
        until(lambda: "No room for a replica" in str(small.deployment("fixed")["error"]))
        until(lambda: any(replica["state"] == "ready" for replica in small.deployment("fixed")["replicas"]))
        until(lambda: httpx.get(f"{small.profile.url}/v2/models/fixed/ready", headers=key(small)).is_success)
        assert ask(small, "fixed") == (1.0, "1")  # with as many as there is room for
