"""Replicas on another machine of the cluster: one that shares a folder with this one, and a cable, and nothing else."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from jobs_bench import eventually, processes_with
from onnx import TensorProto, helper, numpy_helper
from ray_machines import HERE, PORT, THERE, TOKEN, Other, machines, possible

from modelyard.client import Yard
from modelyard.errors import ModelyardError
from modelyard.jobs.ray import tls
from modelyard.serving.channel import Channel
from modelyard.serving.dial import dial
from modelyard.serving.frames import CallFrame, CancelFrame, EndFrame, Frame
from modelyard.serving.probe import probe
from modelyard.testing import yard

# Not in `make test`: they cut cables and wait for what that costs, which takes minutes, and a machine that does nothing else.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not possible(), reason="another machine takes root, unshare, nsenter, ip, mount, openssl, bwrap"),
]
RNG = np.random.default_rng(0)
LARGE = RNG.normal(size=(163_840, 16)).astype(np.float32)  # 10 MiB
# A control that is started again may take longer than usual where others compute.
PATIENT = {"MODELYARD_GRACE": "60"}
Row = tuple[str, str, str, int]


def graph(folder: Path) -> Path:
    """16 → 4 with a tanh, as an .onnx file."""
    weights = numpy_helper.from_array(RNG.normal(size=(16, 4)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 16), ("y", 4))]
    made = helper.make_graph(nodes, "small", ends[:1], ends[1:], [weights])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "small.onnx")
    return folder / "small.onnx"


class Scene:
    """A platform with two replicas of one deployment, 'small'."""

    def __init__(self, platform: Yard, other: Other, folder: Path) -> None:
        self.platform, self.other, self.data = platform, other, folder / "yard"
        self.session = onnxruntime.InferenceSession(folder / "small.onnx", providers=["CPUExecutionProvider"])
        self.calls = self.rows = 0

    def replicas(self, state: str = "ready") -> list[Row]:
        """token, state, address and pid of each."""
        with contextlib.closing(sqlite3.connect(self.data / "modelyard.db", timeout=30)) as database:
            return database.execute("SELECT token, state, address, pid FROM replicas WHERE state = ?", (state,)).fetchall()

    def remote(self) -> list[Row]:
        return [row for row in self.replicas() if row[2].startswith(f"tls://{THERE}:")]

    def local(self) -> list[Row]:
        return [row for row in self.replicas() if row[2].startswith("/")]

    def process(self, *words: str) -> int:
        """The number of the youngest process on the other machine that has these among its arguments, as this one knows it."""
        found = []
        for pid in self.other.processes():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_text()
                if all(word in line for word in words) and not line.startswith("bwrap"):
                    found.append(pid)
        return max(found)

    def controls(self) -> list[int]:
        """The number of control's process, where there is one."""
        found = []
        for pid in processes_with(str(self.data)):
            with contextlib.suppress(OSError):
                if "modelyard.app.process\0control\0" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
        return found

    def lose(self, *words: str) -> None:
        """End a process on the other machine at once."""
        os.kill(self.process(*words), signal.SIGKILL)

    def call(self, x: np.ndarray) -> None:
        """One call that must be answered as onnxruntime answers it."""
        answer = self.platform.predict("small", {"x": x})["y"]
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        np.testing.assert_allclose(answer, self.session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)

    def call_often(self, times: int) -> None:
        for number in range(times):
            self.call(LARGE[number : number + 1 + number % 3])

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """While this lasts three callers call, one of them with more than a frame holds; none may fail."""
        over, failed, lock = threading.Event(), list[BaseException](), threading.Lock()

        def go_on(rows: int) -> None:
            x = LARGE[:rows]
            wanted = self.session.run(None, {"x": x})[0]
            with Yard(self.platform.profile.url, self.platform.profile.key) as caller:
                while not over.is_set():
                    try:
                        answer = caller.predict("small", {"x": x})["y"]
                        np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-6)
                    except BaseException as error:
                        failed.append(error)
                        return
                    with lock:
                        self.calls, self.rows = self.calls + 1, self.rows + rows

        callers = [threading.Thread(target=go_on, args=(rows,)) for rows in (1, 3, 1024)]
        for caller in callers:
            caller.start()
        try:
            yield
            before = self.calls
            eventually(lambda: failed or self.calls > before + 20)
        finally:
            over.set()
            for caller in callers:
                caller.join(90)
        assert not failed, failed

    def usage(self) -> tuple[int, int, int]:
        """Calls, failed ones and rows in the ledger."""
        rows = [row for row in self.platform.usage() if row["subject"] == "small"]
        return tuple(sum(int(row[name]) for row in rows) for name in ("calls", "errors", "units"))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("m")
    with machines(folder) as other, yard(folder / "yard", "--cluster", f"{HERE}:{PORT}", **TOKEN, **PATIENT) as platform:
        platform.import_model("small", graph(folder))
        made = Scene(platform, other, folder)
        platform.deploy("small", "small", replicas=2)
        eventually(lambda: len(made.replicas()) == 2)
        time.sleep(1)  # until the gateway knows of both
        yield made


def test_two_replicas_are_on_two_machines_and_both_answer(scene: Scene) -> None:
    assert (len(scene.local()), len(scene.remote())) == (1, 1), scene.replicas()
    with scene.under_load():
        scene.call_often(50)
        scene.call(LARGE)
    token = scene.remote()[0][0]
    assert f"/{token}/replica.sock" in scene.other.run("find", "/tmp", "-name", "replica.sock").stdout
    assert not list(Path("/tmp").glob(f"modelyard-node-*/run/replicas/{token}"))


def test_one_who_is_not_the_gateway_reaches_nothing(scene: Scene, tmp_path: Path) -> None:
    place = tls.parse(scene.remote()[0][2])
    tls.identity(tmp_path / "other.pem")
    stranger = tls.client(tmp_path / "other.pem", place.certificate)
    said = f"{place.token}\n".encode()
    for context in (None, stranger):
        connection = socket.create_connection((THERE, place.port), timeout=20)
        with contextlib.suppress(OSError):
            connection = context.wrap_socket(connection, server_hostname=tls.NAME) if context else connection
            connection.sendall(said)
            assert tls.READY not in connection.recv(1000)
        connection.close()
    false = place._replace(certificate=ssl.PEM_cert_to_DER_cert(tls.identity(tmp_path / "false.pem")))
    assert probe(str(false), scene.data / "gateway.pem") is None
    assert probe(str(place), tmp_path / "other.pem") is None
    health = probe(str(place), scene.data / "gateway.pem")
    assert health is not None
    assert health.state == "ready"


def test_calls_that_are_given_up_or_late_end_on_the_other_machine_too(scene: Scene) -> None:
    address = scene.remote()[0][2]

    async def ends() -> dict[int, str]:
        loop, found, all_ended = asyncio.get_running_loop(), dict[int, str](), asyncio.Event()

        def received(frame: Frame) -> None:
            if isinstance(frame, EndFrame):
                found[frame.id] = frame.error.code if frame.error else ""
            if len(found) == 3:
                all_ended.set()

        channel = Channel(loop, received, lambda _: None)
        await dial(loop, channel, address, scene.data / "gateway.pem")
        asked = CallFrame(1, "default", "small", "1", "oip", "infer", time.time() + 60, None, {}, b"{", more=True)
        channel.send(asked)
        channel.send(CancelFrame(1))
        body = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16}]}).encode()
        for number, left in ((2, -1.0), (3, 60.0)):
            channel.send(msgspec.structs.replace(asked, id=number, deadline=time.time() + left, data=body, more=False))
        await asyncio.wait_for(all_ended.wait(), 20)
        channel.close()
        await asyncio.sleep(0.2)
        return found

    assert asyncio.run(ends()) == {1: "cancelled", 2: "timed_out", 3: ""}


def test_a_new_control_finds_the_replicas_again(scene: Scene) -> None:
    before = scene.replicas()
    (control,) = scene.controls()
    with scene.under_load():
        os.kill(control, signal.SIGKILL)
        eventually(lambda: scene.controls() not in ([], [control]))
        eventually(lambda: answers(scene.platform))
        time.sleep(3)  # it looks once a second
    assert scene.replicas() == before
    scene.call_often(20)


def test_a_bridge_that_ends_is_started_again_and_its_calls_are_answered(scene: Scene) -> None:
    address = scene.remote()[0][2]
    with scene.under_load():
        scene.lose("modelyard.jobs.ray.bridge")
        eventually(lambda: probe(address, scene.data / "gateway.pem"))
    assert scene.remote()[0][2] == address


def test_a_replica_that_ends_on_the_other_machine_is_replaced_there(scene: Scene) -> None:
    (lost,) = scene.remote()
    with scene.under_load():
        scene.lose("modelyard.serving.replica", lost[0])
        eventually(lambda: [row for row in scene.remote() if row[0] != lost[0]])
    scene.call(LARGE)
    eventually(lambda: lost[0] not in scene.other.run("find", "/tmp", "-name", "r-*").stdout)


def test_a_machine_that_is_cut_off_costs_no_call_and_its_replica_is_replaced(scene: Scene) -> None:
    (lost,), (kept,) = scene.remote(), scene.local()
    with scene.under_load():
        scene.other.unplug()
        eventually(lambda: len(scene.local()) == 2)
    tokens = {row[0] for row in scene.replicas()}
    assert kept[0] in tokens
    assert lost[0] not in tokens
    scene.call_often(20)
    scene.call(LARGE)
    eventually(lambda: scene.usage() == (scene.calls, 0, scene.rows), 10)


def answers(platform: Yard) -> bool:
    try:
        return bool(platform.deployments())
    except ModelyardError:
        return False
