"""A table with words and gaps through the whole loop: two ranks train, variants are measured, callers send raw rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from modelyard.client import Yard
from modelyard.errors import Invalid
from modelyard.testing import yard

# What a square metre costs where; a flat is dear above the middle of all prices.
TOWNS = {"Bern": 1.0, "Genève": 2.0, "Zug": 3.0}
DRAW = np.random.default_rng(5)
CONFIG: dict[str, Any] = {"epochs": 12, "batch_size": 32, "tabular": {"width": 32, "leave_out": ["id"]}}


def homes(count: int) -> list[tuple[int, float | None, int, str, str]]:
    """Rows of id, area (some are missing: of those the town tells the most), rooms, town and the answer."""
    area, rooms = DRAW.uniform(20, 200, count), DRAW.integers(1, 6, count)
    town = DRAW.choice(list(TOWNS), count)
    dear = area * np.array([TOWNS[name] for name in town]) > 200
    gone = DRAW.random(count) < 0.1
    return [
        (n, None if gone[n] else round(area[n], 2), int(rooms[n]), str(town[n]), "dear" if dear[n] else "cheap")
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("tabular")
    rows = [",".join("" if value is None else str(value) for value in row) for row in homes(900)]
    (folder / "homes.csv").write_text("\n".join(["id,area,rooms,town,price", *rows]))
    with yard(folder / "yard") as client:
        client.import_dataset("homes", folder / "homes.csv", target="price")
        yield client


@pytest.fixture(scope="module")
def served(platform: Yard) -> dict[str, Any]:
    """What was trained, optimised and deployed."""
    trained = platform.train("homes", "homes@1", "tabular", ranks=2, **CONFIG)
    assert trained["task"] == "tabular-classification"
    assert trained["metadata"]["metrics"]["select"]["accuracy"] > 0.85
    best = platform.optimize("homes@1", max_accuracy_drop=2.0, seconds=0.2)
    assert {"onnx"} == set(best["metadata"]["engines"])
    return platform.deploy("homes", best["reference"])


def test_another_engine_is_measured_beside_and_answers_the_same(platform: Yard, served: dict[str, Any]) -> None:
    profile = platform.profile
    environment = {**os.environ, "MODELYARD_URL": profile.url, "MODELYARD_KEY": profile.key}
    command = [sys.executable, "-m", "modelyard", "bench", "homes@1", "--set", "seconds=0.2", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    table = {row["variant"]: row for row in found["facts"]["table"]}
    fastest = min((name for name in table if name != "original"), key=lambda name: table[name]["p50_ms"])
    assert found["metadata"]["variant"] == fastest
    assert "best" in found["aliases"]
    made = {v["metadata"].get("variant"): v for v in platform.versions("homes")["versions"]}
    assert made["openvino"]["metadata"]["engines"] == ["openvino"]
    for name in ("openvino", "litert", "pt2"):
        assert made[name]["metadata"]["verification"]["max_rel"] < 1e-4
    assert made["litert"]["metadata"]["engines"] == ["litert"]
    shown = platform.deploy("elsewhere", made["litert"]["reference"])
    assert shown["engine"] == "litert"
    platform.deploy("here", made["fp32"]["reference"])
    _, area, rooms, town, _ = zip(*homes(100), strict=True)
    asked = {"area": np.array(area, np.float32), "rooms": list(rooms), "town": list(town)}
    ours, theirs = platform.predict("here", asked), platform.predict("elsewhere", asked)
    np.testing.assert_array_equal(ours["label"], theirs["label"])
    for name in ("here", "elsewhere"):
        platform.undeploy(name)


def test_rows_as_they_are_get_answers_that_chance_has_not(platform: Yard, served: dict[str, Any]) -> None:
    _, area, rooms, town, wanted = zip(*homes(300), strict=True)
    asked = {"area": np.array(area, np.float32), "rooms": list(rooms), "town": list(town)}
    answer = platform.predict("homes", asked)
    right = np.mean([label.decode() == price for label, price in zip(answer["label"], wanted, strict=True)])
    assert right > 0.85  # the commonest answer is right in about half of them
    assert answer["scores"].shape == (300, 2)


def test_a_call_in_plain_json_with_words_is_answered(platform: Yard, served: dict[str, Any]) -> None:
    columns = {"area": ("FP32", [190.0, 25.0]), "rooms": ("INT64", [5, 1]), "town": ("BYTES", ["Zug", "Genève"])}
    assert [tensor["name"] for tensor in served["inputs"]] == list(columns)
    inputs = [{"name": name, "datatype": kind, "shape": [2], "data": data} for name, (kind, data) in columns.items()]
    url, key = platform.profile.url, platform.profile.key
    said = httpx.post(f"{url}/v2/models/homes/infer", json={"inputs": inputs}, headers={"Authorization": f"Bearer {key}"})
    outputs = {output["name"]: output["data"] for output in said.json()["outputs"]}
    assert outputs["label"] == ["dear", "cheap"]


def test_a_town_that_training_has_not_seen_and_a_missing_area_are_answered(platform: Yard, served: dict[str, Any]) -> None:
    answer = platform.predict("homes", {"area": np.array([np.nan], np.float32), "rooms": [3], "town": ["Atlantis"]})
    assert answer["label"][0] in (b"dear", b"cheap")


def test_words_where_numbers_belong_are_refused_by_their_column(platform: Yard, served: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=r"'area'.*BYTES.*FP32"):
        platform.predict("homes", {"area": np.array(["large"], object), "rooms": [3], "town": ["Zug"]})
