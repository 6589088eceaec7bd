"""The command line as a person or a script uses it, against a real platform."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import doctor
from modelyard.client import Yard, transfer
from modelyard.settings import Settings
from modelyard.storage import Manifest
from modelyard.testing import yard

ROOT = Path(__file__).parents[2]
HEAVY = {"httpx", "numpy", "pydantic", "sqlalchemy", "fastapi", "torch", "onnxruntime", "obstore", "rich.progress"}
COMMAND = [sys.executable, "-m", "modelyard"]
Cli = Callable[..., Any]


def test_help_answers_at_once_because_it_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "modelyard", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & HEAVY
    assert len(loaded) < 450


def test_a_port_that_somebody_has_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        check = doctor.port(Settings(data=tmp_path, port=other.getsockname()[1]))
        assert check.state == "failed"
        assert "--port" in check.advice
    assert doctor.port(Settings(data=tmp_path, port=0)).state == "ok"


def interruptible() -> None:
    """As on a terminal: a test run in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with yard(tmp_path_factory.mktemp("yard")) as client:
        yield client


@pytest.fixture(scope="module")
def environment(platform: Yard) -> dict[str, str]:
    """A shell whose MODELYARD_DATA is the platform's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    assert platform.profile.file is not None
    return kept | {"MODELYARD_DATA": str(platform.profile.file.parent)}


@pytest.fixture(scope="module")
def cli(environment: dict[str, str]) -> Cli:
    """Run a command with --json; its document, or that of the error where `fails` names the exit code."""

    def run(line: str, *more: str | Path, fails: int = 0, **changed: str) -> Any:
        command = [*COMMAND, *line.split(), *map(str, more), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | changed, stdin=subprocess.DEVNULL)
        assert done.returncode == fails, done.stderr + done.stdout
        body = json.loads(done.stdout)
        return body["error"] if fails else body

    return run


@pytest.fixture(scope="module")
def served(cli: Cli) -> dict[str, Any]:
    """The loop of the README, trained for a moment; the answer of `deploy`."""
    assert cli("dataset import digits --from sklearn:digits").items() >= {"name": "digits", "version": 1}.items()
    trained = cli("train digits-cnn --dataset digits@1 --recipe image-classifier --ranks 2 --epochs 3 --follow")
    assert (trained["name"], trained["version"], trained["task"]) == ("digits-cnn", 1, "image-classification")
    best = cli("optimize digits-cnn@1 --max-accuracy-drop 5 --set seconds=0.2 --follow")
    assert best["name"] == "digits-cnn"
    assert best["aliases"] == ["best"]
    assert {row["variant"] for row in best["facts"]["table"]} >= {"original", "fp32", "static-int8", "dynamic-int8"}
    deployed = cli("deploy digits --model digits-cnn@best")
    assert deployed["model"] == best["reference"]
    return deployed  # type: ignore[no-any-return]


def test_a_deployment_says_what_it_serves(served: dict[str, Any]) -> None:
    assert (served["name"], served["state"]) == ("digits", "ready")
    assert f"digits-cnn@{served['version']}" == served["model"]


@pytest.mark.skipif(not shutil.which("curl"), reason="the printed line needs curl")
def test_the_curl_line_works_as_it_is_printed(served: dict[str, Any], environment: dict[str, str]) -> None:
    shown = subprocess.run(
        [*COMMAND, "deployment", "show", "digits"], capture_output=True, text=True, env=environment, check=True
    )
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("curl"))
    assert line == served["curl"]
    bare = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=bare, check=True)
    assert json.loads(done.stdout)["model_name"] == "digits"


def test_a_prediction_and_its_receipt(served: dict[str, Any], cli: Cli) -> None:
    answer = cli("predict digits --image", ROOT / "examples" / "seven.png")
    assert answer["outputs"]["label"] == ["7"]
    assert (answer["version"], answer["model"]) == (served["version"], served["model"])
    kinds = {job["kind"] for job in cli("receipt digits")["jobs"]}
    assert kinds == {"optimise", "train", "import-dataset"}


def test_a_version_is_reproduced_bit_for_bit(served: dict[str, Any], cli: Cli) -> None:
    found = cli("reproduce digits-cnn@1")
    assert (found["reference"], found["reproduced"]) == ("digits-cnn@1", "digits-cnn-reproduced@1")
    assert (found["identical"], found["differences"], found["environment"]) == (True, [], [])
    first, again = (cli(f"model show {reference}")["job"] for reference in (found["reference"], found["reproduced"]))
    assert first != again == found["job"]


def test_a_gang_is_arranged_and_takes_what_it_is_given(served: dict[str, Any], platform: Yard, cli: Cli) -> None:
    asked = "train meshed --dataset digits@1 --ranks 2 --cpus 1 --memory 3GiB --epochs 1000"
    refused = cli(f"{asked} --mesh data=2,shard=2", fails=6)["message"]
    assert "'data=2,shard=2'" in refused
    assert "4 ranks" in refused
    assert "2" in refused
    assert "memory" in cli("train meshed --dataset digits@1 --memory 900TiB", fails=6)["message"]
    job = platform.job(cli(f"{asked} --mesh data=1,shard=2")["job"])
    assert (job["config"]["mesh"], job["ranks"]) == ("data=1,shard=2", 2)
    assert job["resources"] == {"cpus": 1, "gpus": 0, "memory": 3 << 30}
    cli(f"stop {job['id']}")


def test_how_a_sweep_chooses_can_be_said(served: dict[str, Any], platform: Yard, cli: Cli) -> None:
    choice = "--metric select_loss --direction minimise --grace 2"
    said = cli(f"train cnn --dataset digits@1 {choice}", fails=6)["message"]
    assert "'metric' says how a sweep chooses" in said
    job = platform.job(cli(f"train cnn --dataset digits@1 --sweep lr=1e-4..1e-2:log --trials 1 --epochs 1000 {choice}")["job"])
    assert [job["config"][name] for name in ("metric", "direction", "grace")] == ["select_loss", "minimise", 2]
    cli(f"stop {job['id']}")


def test_a_fetched_version_is_the_artefact(served: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    fetched = cli("model fetch digits-cnn@1", tmp_path / "here")
    assert Manifest.of_folder(tmp_path / "here").hash == fetched["hash"]
    assert cli("model fetch digits-cnn@1", tmp_path / "here", fails=6)["code"] == "conflict"


def test_a_key_may_do_what_its_scope_says(served: dict[str, Any], cli: Cli) -> None:
    made = cli("key create --scope infer --expires 1h")
    assert set(made) >= {"id", "key", "scope"}
    assert cli("whoami", MODELYARD_KEY=made["key"])["scope"] == "infer"
    assert cli("key list", fails=3, MODELYARD_KEY=made["key"])["code"] == "insufficient_scope"
    cli("key revoke --yes", made["id"])
    time.sleep(1.0)
    assert cli("whoami", fails=3, MODELYARD_KEY=made["key"])["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("line", "code", "exit_code", "says"),
    [
        ("predict digitz --input x=[1]", "not_found", 4, "'digits'"),
        ("deploy other --model digits-cmm@1", "not_found", 4, "'digits-cnn'"),
        ("deploy other --model digits-cnn@99", "not_found", 4, "99"),
        ("train m --dataset digits@1 --set epoch=1", "invalid_request", 6, "epoch"),
        ("train m --dataset digits@1 --recipe nothing --follow", "not_found", 4, "image-classifier"),
        ("dataset import d --from sklearn:digit", "not_found", 4, "sklearn:digits"),
        ("delete digits-cnn", "usage", 2, "--yes"),
        ("delete digits-cnn --yes", "conflict", 6, "digits"),
        ("logs nothing", "not_found", 4, "The newest are"),
        ("stop nothing", "not_found", 4, "The newest are"),
        ("job show nothing", "not_found", 4, "The newest are"),
        ("dataset import d --from http://example.org/rows.csv", "invalid_request", 6, "not supported"),
        ("key create --scope root", "usage", 2, "infer"),
    ],
)
def test_what_is_wrong_is_said(served: dict[str, Any], cli: Cli, line: str, code: str, exit_code: int, says: str) -> None:
    error = cli(line, fails=exit_code)
    assert error["code"] == code
    assert says in error["message"]


def test_an_interrupt_detaches_and_stop_ends(served: dict[str, Any], cli: Cli, environment: dict[str, str]) -> None:
    def interrupted(line: str, sign: str) -> tuple[str, str, str]:
        """The first line on stderr, and what was said on stdout and stderr after an interrupt at the line that has `sign`."""
        command = [*COMMAND, *line.split()]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=interruptible
        ) as process:
            assert process.stderr is not None
            first = now = process.stderr.readline()
            while sign not in now:
                now = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            said = process.communicate()
        assert process.returncode == 130
        return first, *said

    first, out, err = interrupted("train endless --dataset digits@1 --epochs 100000 --follow", "running")
    job = first.split()[-1]
    assert out == ""
    assert f"modelyard stop {job}" in err
    cpus = os.cpu_count()  # all of them, of which the endless one has one
    first, out, err = interrupted(
        f"train waiting --dataset digits@1 --ranks {cpus} --epochs 100000 --follow --json", "waits for"
    )
    error = json.loads(out)["error"]
    assert error["code"] == "interrupted"
    assert first.split()[-1] in error["message"]
    cli("stop", first.split()[-1])
    assert job in [shown["id"] for shown in cli("ps")["jobs"]]
    assert cli("stop", job)["state"] == "cancelled"
    assert cli("logs", job).items() >= {"job": job, "state": "cancelled"}.items()
    assert job not in [shown["id"] for shown in cli("ps")["jobs"]]


def test_without_follow_a_job_is_all_there_is(served: dict[str, Any], cli: Cli) -> None:
    assert set(cli("train quick --dataset digits@1 --epochs 1")) == {"job"}
    assert set(cli("dataset import again --from sklearn:iris --no-wait")) == {"job"}


def test_large_files_travel_in_chunks_and_only_once(platform: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "weights").write_bytes(os.urandom(1 << 20) * 65)
    told: list[Any] = []
    artefact = platform.upload(tmp_path / "large", told.append)
    assert told[-1]["done"] == told[-1]["total"] == 65 << 20
    sent: list[str] = []
    send = platform._wire.send
    monkeypatch.setattr(platform._wire, "send", lambda method, *a, **k: sent.append(method) or send(method, *a, **k))
    assert platform.upload(tmp_path / "large") == artefact
    assert "PUT" not in sent
    back = transfer.fetch(platform._wire, artefact, tmp_path / "back")
    assert Manifest.of_folder(back).hash == artefact


def test_datasets_come_from_files_of_several_kinds(cli: Cli, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    lines = [json.dumps({"messages": [{**chat[0], "content": f"{n}?"}, chat[1]], "source": n}) for n in range(50)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    made = cli("dataset import talks --column messages --from", tmp_path / "talks.jsonl")
    assert (made["task"], made["metadata"]["features"]) == ("text-generation", {"messages": "chat"})
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "train.txt").write_text("one\ntwo\n\nthree")
    (tmp_path / "book" / "test.txt").write_text("four\n\nfive")
    made = cli("dataset import book --rows paragraph --from", tmp_path / "book")
    assert (made["metadata"]["rows"], made["metadata"]["splits"]["report"]) == (4, 2)
    (tmp_path / "talks.jsonl").write_text("\n".join([*lines, '{"messages": 1, "source": 2}']))
    error = cli("dataset import talks --from", tmp_path / "talks.jsonl", fails=6)
    assert "'talks.jsonl', line 51, 'messages': 1 where a list of messages was expected" in error["message"]
    error = cli("dataset import news --from hf:org/name", fails=5, HF_ENDPOINT="http://127.0.0.1:9")
    assert "give the files: --from FOLDER" in error["message"]


def test_what_is_no_longer_wanted_goes(served: dict[str, Any], cli: Cli) -> None:
    cli("undeploy digits")
    cli("delete digits-cnn --yes")
    assert cli("model show digits-cnn", fails=4)["code"] == "not_found"
