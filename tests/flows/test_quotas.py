"""Quotas on a real platform: set by the command line and the SDK, in force within a second, past them 429 by every door."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from test_releases import scaled
from tritonclient.grpc import service_pb2

from modelyard.client import Yard
from modelyard.errors import Overloaded
from modelyard.serving.grpc.server import SERVICE
from modelyard.testing import yard

X = np.ones((1, 1), np.float32)
OIP = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("quotas")
    with yard(folder / "yard", "--grpc") as made:
        made.import_model("one", scaled(folder / "one.onnx", 2.0))
        made.deploy("one", "one")
        yield made


def typed(platform: Yard, *words: str) -> Any:
    """What a command says."""
    argv = [sys.executable, "-m", "modelyard", *words, "--data", str(platform.profile.file.parent), "--json"]
    return json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)


def by_oip(platform: Yard, key: str) -> httpx.Response:
    return httpx.post(f"{platform.profile.url}/v2/models/one/infer", json=OIP, headers={"Authorization": f"Bearer {key}"})


def by_v1(platform: Yard, key: str) -> httpx.Response:
    return httpx.post(f"{platform.profile.url}/v1/models/one:predict", json={"instances": [[1.0]]}, headers={"x-api-key": key})


def by_grpc(platform: Yard, key: str) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    request = service_pb2.ModelInferRequest(model_name="one", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    url = httpx.URL(platform.profile.url)
    with grpc.insecure_channel(f"127.0.0.1:{(url.port or 0) + 1}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(
            request.SerializeToString(), metadata=[("authorization", f"Bearer {key}")], timeout=15
        )
        return call.code(), call.details() or "", dict(call.trailing_metadata() or ())


def used(platform: Yard, key: str) -> int:
    return sum(row["calls"] for row in platform.usage() if row["key"] == key)


def refusals(platform: Yard) -> float:
    text = httpx.get(
        f"{platform.profile.url}/metrics", headers={"Authorization": f"Bearer {platform.profile.key}"}
    ).text.splitlines()
    return sum(float(line.split()[-1]) for line in text if line.startswith('modelyard_refused_total{code="429"}'))


def soon(condition: Callable[[], Any], patience: float = 1.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)


def test_a_key_s_quota_over_every_protocol(platform: Yard) -> None:
    made = typed(platform, "key", "create", "--scope", "infer", "--rate", "6/m", "--burst", "3")
    before = refusals(platform)
    assert by_oip(platform, made["key"]).status_code == by_v1(platform, made["key"]).status_code == 200
    assert by_grpc(platform, made["key"])[0] == grpc.StatusCode.OK
    says = f"The quota of key '{made['id']}' is 0.1 calls a second, 3 at once; try again in "
    for refused in (by_oip(platform, made["key"]), by_v1(platform, made["key"])):
        assert (refused.status_code, list(refused.json())) == (429, ["error"])
        assert refused.json()["error"].startswith(says)
        assert 1 <= int(refused.headers["retry-after"]) <= 10
    code, details, metadata = by_grpc(platform, made["key"])
    assert (code, details.startswith(says)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), details
    assert 1 <= int(metadata["retry-after"]) <= 10
    with Yard(platform.profile.url, made["key"]) as client, pytest.raises(Overloaded, match="The quota of key"):
        client.predict("one", {"x": X})
    assert by_oip(platform, platform.profile.key).status_code == 200  # nobody else's
    assert refusals(platform) - before == 4
    soon(lambda: used(platform, made["id"]) == 3, 5.0)
    assert [row["errors"] for row in platform.usage() if row["key"] == made["id"]] == [0]


def test_it_is_changed_and_lifted_within_a_second(platform: Yard) -> None:
    made = platform.create_key("infer", rate=0.01, burst=1)
    assert [by_oip(platform, made["key"]).status_code for _ in range(2)] == [200, 429]
    assert typed(platform, "key", "quota", made["id"], "--rate", "1000/s")["burst"] == 1000
    soon(lambda: by_oip(platform, made["key"]).status_code == 200)
    platform.set_quota(key=made["id"], rate=0.01, burst=1)
    soon(lambda: by_oip(platform, made["key"]).status_code == 429)
    assert typed(platform, "key", "quota", made["id"], "--rate", "none")["rate"] is None
    soon(lambda: by_oip(platform, made["key"]).status_code == 200)
    assert all(by_oip(platform, made["key"]).status_code == 200 for _ in range(20))


def test_a_project_s_quota_is_one_for_all_its_keys(platform: Yard) -> None:
    keys = [platform.create_key("infer")["key"] for _ in range(4)]
    assert typed(platform, "project", "quota", "default", "--rate", "5/s", "--burst", "5")["rate"] == 5
    assert [one["rate"] for one in platform.projects() if one["name"] == "default"] == [5]
    try:
        soon(lambda: by_oip(platform, keys[0]).status_code == 429)
        with ThreadPoolExecutor(4) as pool:
            began, answers = time.monotonic(), list[tuple[int, str]]()
            while time.monotonic() - began < 2.0:
                answers += [(a.status_code, a.text) for a in pool.map(lambda key: by_oip(platform, key), keys)]
            took = time.monotonic() - began
        assert {status for status, _ in answers} == {200, 429}
        assert all("The quota of project 'default' is 5 calls a second" in text for status, text in answers if status == 429)
        assert 5 * 2.0 * 0.8 <= sum(status == 200 for status, _ in answers) <= 5 + 5 * took
    finally:
        platform.set_quota(rate=None)
    soon(lambda: all(by_oip(platform, key).status_code == 200 for key in keys))
