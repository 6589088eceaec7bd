"""Requests a second of the same models by Modelyard and by the servers that pip can install, in one run on one machine.

Three models: 10 → 20 → 1 as JSON; a small CNN on pictures of 3×32×32, as bytes where a server takes them; MiniLM with its real
weights on texts of 5 to 200 tokens. wrk drives one server after another, round after round, with 1,024 distinct bodies; every
server's answers are compared with onnxruntime's before, and while, it is under load. The platform checks keys, counts and
settles every call, and its ledger must hold what was sent; the others do none of that. A server that cannot be installed or
started is recorded as missing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import models
import numpy as np
import ours
import protocols
from peers import install
from record import Record, busy_seconds, median, recording, supervisor_of
from rivals import PEERS, RIVALS, WORKERS, Missing, Refused, Server, Subject, running
from wrk import needs_wrk, wrk

from modelyard.client import Yard
from modelyard.testing import yard

# Connections → how many times the usual seconds: texts take long, so that a few seconds hold only a few batches.
LEVELS: Mapping[str, Mapping[int, float]] = {"mlp": {1: 0.5, 32: 1, 128: 1}, "cnn": {32: 1}, "minilm": {32: 1.5, 128: 1.5}}
# The platform and the reference, whose ratio is wanted to a few per cent.
LONGER = {"minilm": 3}
# As many as suit the model: a tiny one leaves the second processor to the gateway.
REPLICAS = {"mlp": 1, "cnn": 2, "minilm": 2}
BODIES = 1024
COMPARED = list(range(0, BODIES, 16))  # the samples whose answers are compared
EVERY = 0.05  # seconds between the calls that are compared while wrk drives a server
SLOW = ("litserve", "bentoml", "mlserver", "kserve", "triton", "ray")
US = "modelyard"


@dataclass
class Level:
    """What one server did at one number of connections, a value a round."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cores: list[dict[str, float]] = field(default_factory=list)
    errors: int = 0
    compared: int = 0


@dataclass
class Run:
    """All that was found: (model, server, connections) → level. `sent` counts the platform's calls; `batches` are the best
    sizes of raw onnxruntime, by connections."""

    record: Record
    seconds: int
    rounds: int
    rivals: Sequence[str]
    folder: Path
    levels: dict[tuple[str, str, int], Level] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    batches: dict[int, int] = field(default_factory=dict)
    sent: int = 0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default="all", help=f"of {'; '.join(RIVALS)} (joined by ';'), 'all' or 'none'")
    parser.add_argument("--models", default=",".join(LEVELS), help="of mlp, cnn, minilm")
    parser.add_argument("--seconds", type=int, help="of load at each point (default: 2)")
    parser.add_argument("--rounds", type=int, help="that the servers take turns in (default: 3)")


def chosen(given: str, words: Mapping[str, list[str]], known: Mapping[str, Any], between: str) -> list[str]:
    """The names that an option gives, or what one of its `words` stands for."""
    names = words[given] if given in words else [name.strip() for name in given.split(between)]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"serving.py knows no {', '.join(unknown)}; known are {f'{between} '.join(known)}.")
    return names


def main() -> None:
    needs_wrk("serving.py")
    with recording("serving", __doc__ or "", options) as record, tempfile.TemporaryDirectory() as folder:
        given = record.given
        seconds, rounds = given.seconds or (1 if record.quick else 2), given.rounds or (1 if record.quick else 3)
        rivals = chosen(given.peers, {"all": list(RIVALS), "none": []}, RIVALS, ";")
        wanted = chosen(given.models, {}, LEVELS, ",")
        record.parameters = {
            "seconds": seconds, "rounds": rounds, "bodies": BODIES, "models": wanted, "peers": rivals, "workers": WORKERS,
            "replicas": REPLICAS,
        }  # fmt: skip
        run = Run(record, seconds, rounds, rivals, Path(folder))
        with yard(Path(folder) / "yard") as platform:
            key = ours.limited(platform)
            for name in wanted:
                measure(run, platform, key, subject(platform, name, Path(folder)))
            ledger(run, platform, key, wanted)
        for name, why in run.missing.items():
            record.figure(f"{name}: missing", 1, "server", why=why)
        for name in wanted:
            report(run, name)


def subject(platform: Yard, name: str, folder: Path) -> Subject:
    """The model in the platform, and its samples with onnxruntime's own answers."""
    generator = np.random.default_rng(1)
    if name == "minilm":
        return texts(platform, folder)
    shape, make = {"mlp": ((10,), models.tiny), "cnn": (models.PICTURE, models.cnn)}[name]
    file = make(folder / f"{name}.onnx")
    platform.import_model(name, file)
    samples = generator.normal(size=(BODIES, *shape)).astype(np.float32)
    (found,) = models.session_of(file).run(None, {"x": samples[COMPARED]})
    expected = dict(zip(COMPARED, found, strict=True))
    return Subject(name, "vector" if name == "mlp" else "picture", file, list(samples), expected)


def texts(platform: Yard, folder: Path) -> Subject:
    """MiniLM as the platform imported it: every server gets the graph that the platform made."""
    weights = install.weights()
    platform.import_model("minilm", weights)
    file = next(platform.fetch("minilm", folder / "minilm").rglob("*.onnx"), None)
    if file is None:
        sys.exit("This version makes no graph of a folder of sentence-transformers: leave minilm out of --models.")
    tokenizer = weights / "tokenizer.json"
    samples = models.texts(BODIES, tokenizer)
    found = models.embeddings(file, tokenizer, [samples[index] for index in COMPARED])
    return Subject("minilm", "text", file, samples, dict(zip(COMPARED, found, strict=True)), tokenizer)


def measure(run: Run, platform: Yard, key: str, what: Subject) -> None:
    """All servers on one model. The quiet ones run side by side and take turns; those that never rest come after."""
    print(f"-- {what.name}: starting the servers", flush=True)
    ours.deployed(platform, what.name, what.name, REPLICAS[what.name])
    mine = ourselves(platform, key, what)
    with contextlib.ExitStack() as stack:
        servers = [mine]
        for name in [name for name in run.rivals if not RIVALS[name].restless]:
            servers += started(run, stack, name, what)
        for server in servers:
            check(run, server, what)
        for turn in range(run.rounds):
            shift = turn % len(servers)
            for server in [*servers[shift:], *servers[:shift]]:
                for connections in LEVELS[what.name]:
                    at(run, server, what, connections)
            if what.kind == "text":
                reference(run, what)
    for name in [name for name in run.rivals if RIVALS[name].restless]:
        with contextlib.ExitStack() as stack:
            for server in started(run, stack, name, what):
                check(run, server, what)
                for _ in range(run.rounds):
                    for connections in LEVELS[what.name]:
                        at(run, server, what, connections)
    memory = mine.memory()
    run.record.figure(f"{what.name}: {US}: memory (PSS)", memory / 1e6, "MB")
    platform.undeploy(what.name)


def ourselves(platform: Yard, key: str, what: Subject) -> Server:
    """The platform as a server: its tensors are asked of itself."""
    url, headers = platform.profile.url, {"Authorization": f"Bearer {key}"}
    (tensor,) = httpx.get(f"{url}/v2/models/{what.name}", headers=headers, trust_env=False).raise_for_status().json()["inputs"]
    two = len(tensor["shape"]) == 2
    protocol = protocols.oip(what.kind, what.name, binary=True, name=tensor["name"], batched_text=two)
    return Server(US, url, protocol, supervisor_of(platform), headers)


def started(run: Run, stack: contextlib.ExitStack, name: str, what: Subject) -> list[Server]:
    """The server, or none where it is missing. Twice, since one or another loses a race of its own now and then."""
    for attempt in range(2):
        try:
            began = time.monotonic()
            server = stack.enter_context(running(name, what, run.folder / f"logs{attempt}"))
        except Missing as why:
            print(f"   {name}: missing: {why}", flush=True)
            run.missing[f"{what.name}: {name}"] = str(why)
        else:
            run.missing.pop(f"{what.name}: {name}", None)
            print(f"   {name}: {time.monotonic() - began:.1f} s", flush=True)
            return [server]
    return []


def check(run: Run, server: Server, what: Subject) -> None:
    """Some answers beside onnxruntime's, and a second of load to warm up. Raises where one differs."""
    client = server.client()
    for index in COMPARED:
        compare(server, client, what, index)
    bodies = [server.protocol.body(sample) for sample in what.samples]
    warmed = drive(server, bodies, 32, 1)
    count(run, server, len(COMPARED) + warmed["requests"])


def compare(server: Server, client: http.client.HTTPConnection, what: Subject, index: int) -> None:
    answer, expected = server.ask(client, what.samples[index]), np.ravel(what.expected[index])
    if answer.shape != expected.shape or not np.allclose(answer, expected, rtol=1e-3, atol=1e-4):
        raise AssertionError(f"{server.name} answered {answer[:4]}… where onnxruntime says {expected[:4]}…")


def count(run: Run, server: Server, calls: int) -> None:
    run.sent += calls if server.name == US else 0


def drive(server: Server, bodies: Sequence[bytes], connections: int, seconds: int) -> dict[str, Any]:
    headers = {**server.protocol.headers, **server.headers}
    return wrk(server.url, server.protocol.path, headers, bodies, connections=connections, seconds=seconds)


def span(run: Run, what: Subject, name: str, connections: int) -> int:
    """Seconds of load: whole ones, as wrk takes them."""
    times = LEVELS[what.name][connections] * (LONGER.get(what.name, 1) if name in (US, "raw") else 1)
    return max(1, round(run.seconds * times))


def at(run: Run, server: Server, what: Subject, connections: int) -> None:
    """One level in one round. While wrk is at it, another connection compares answers: those come from full batches."""
    level = run.levels.setdefault((what.name, server.name, connections), Level())
    bodies = [server.protocol.body(sample) for sample in what.samples]
    with comparing(server, what) as (compared, refused):
        before, busy, start = server.cpu(), busy_seconds(), time.monotonic()
        said = drive(server, bodies, connections, span(run, what, server.name, connections))
        spent, wall, whole = server.cpu() - before, time.monotonic() - start, busy_seconds() - busy
    ok = said["requests"] - said["refused"]
    level.rates.append(ok / (said["us"] / 1e6))
    level.cpu.append(1e6 * spent / max(1, ok + len(compared)))
    level.p50.append(said["p50"])
    level.p99.append(said["p99"])
    cores = {"server": spent / wall, "all": whole / wall, "wrk": said["wrk_cpu"] / wall}
    level.cores.append({name: round(value, 2) for name, value in cores.items()})
    level.errors += said["errors"] + said["refused"] + len(refused)
    level.compared += len(compared)
    count(run, server, said["requests"] + len(compared))
    print(f"   {what.name}: {server.name}: {connections}: {level.rates[-1]:,.0f}/s, p50 {level.p50[-1]:.2f} ms", flush=True)


@contextlib.contextmanager
def comparing(server: Server, what: Subject) -> Iterator[tuple[list[int], list[str]]]:
    """Answers compared in the background, every now and then, and those that others refused; raises at the block's end where
    one differed, or the platform refused one."""
    compared: list[int] = []
    refused: list[str] = []
    failures: list[Exception] = []
    over = threading.Event()

    def watch() -> None:
        client, indices = server.client(60.0), itertools.cycle(COMPARED)
        while not over.wait(EVERY) and not failures:
            index = next(indices)
            try:
                compare(server, client, what, index)
            except Refused as error:
                refused.append(str(error))
                if server.name == US:
                    failures.append(error)
                continue
            except Exception as error:  # noqa: BLE001 - raised by whoever waits for this thread
                failures.append(error)
            compared.append(index)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield compared, refused
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


def reference(run: Run, what: Subject) -> None:
    """Raw onnxruntime on the same texts, with as many processes as the platform has replicas, while wrk runs."""
    told = {"MODEL": what.file, "TOKENIZER": what.tokenizer, "KIND": "text", "PORT": 0, "WORKERS": 0, "BATCH": 0, "WAIT_MS": 0}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PEER_FOLDER": str(run.folder)}
    environment |= {f"PEER_{name}": str(value) for name, value in told.items()}
    for connections in LEVELS[what.name]:
        seconds = span(run, what, "raw", connections)
        command = [sys.executable, str(PEERS / "raw_texts.py"), str(connections), str(REPLICAS["minilm"]), str(seconds)]
        command.append(str(run.batches.get(connections, 0)))
        done = subprocess.run(command, input="\n".join(what.samples).encode(), env=environment, capture_output=True, check=True)
        said = json.loads(done.stdout)
        run.batches[connections] = said["batch"]
        run.levels.setdefault((what.name, "raw", connections), Level()).rates.append(said["rate"])
        print(f"   raw onnxruntime: {connections}: {said['rate']:.0f}/s in batches of {said['batch']}", flush=True)


def ledger(run: Run, platform: Yard, key: str, wanted: Sequence[str]) -> None:
    counted = ours.told(platform.profile.url, {"Authorization": f"Bearer {key}"})
    booked = ours.settled(platform, counted)
    name = f"{US}: calls in the ledger - calls"
    run.record.figure(f"{name} the gateway counted", booked - counted, "calls", least=0, most=0, ledger=booked)
    # wrk leaves when its time is over, with a call under way on each connection: those are counted too.
    left = sum(32 + run.rounds * sum(LEVELS[model]) for model in wanted)
    run.record.figure(f"{name} that were answered", booked - run.sent, "calls", least=0, most=left)


def report(run: Run, model: str) -> None:
    """Figures of each server, and the ratios of their medians."""
    found = {name: level for (what, name, _), level in run.levels.items() if what == model}
    for (what, name, connections), level in run.levels.items():
        if what == model and level.p50:
            where = f"{model}: {name}: {connections} connection{'s' * (connections > 1)}"
            more = {"each": level.rates, "p50": median(level.p50), "p99": median(level.p99), "cores": level.cores}
            run.record.figure(f"{where}: requests a second", median(level.rates), "1/s", compared=level.compared, **more)
            run.record.figure(f"{where}: processor time a call", median(level.cpu), "µs")
            run.record.figure(f"{where}: errors", level.errors, "calls", most=0 if name == US else None)
    if US in found:
        for connections in LEVELS[model]:
            ratios(run, model, connections)


def rate(run: Run, model: str, name: str, connections: int) -> float | None:
    level = run.levels.get((model, name, connections))
    return median(level.rates) if level and level.rates else None


def ratios(run: Run, model: str, connections: int) -> None:
    """The platform over each of the others, with the targets."""
    own = rate(run, model, US, connections) or 0.0
    rates = {name: found for name in RIVALS if (found := rate(run, model, name, connections))}
    where = f"{model}: {connections} connection{'s' * (connections > 1)}: {US} /"
    mosec = max((found for name, found in rates.items() if name.startswith("mosec")), default=None)
    targets = {"mosec, the better": {32: 2.0, 128: 1.5}.get(connections), "fastapi": 3.0} | dict.fromkeys(SLOW, 8.0)
    if model == "mlp":
        for name, theirs in {**({"mosec, the better": mosec} if mosec else {}), **rates}.items():
            run.record.figure(f"{where} {name}", own / theirs, "×", least=targets.get(name) if connections > 1 else None)
    elif rates:
        best = max(rates, key=lambda name: rates[name])
        least = 1.0 if model == "minilm" else 2.0 if connections == 32 else None
        run.record.figure(f"{where} the best peer", own / rates[best], "×", least=least, best=best)
        for name, theirs in rates.items():
            run.record.figure(f"{where} {name}", own / theirs, "×")
    if raw := rate(run, model, "raw", connections):
        run.record.figure(f"{where} raw onnxruntime", own / raw, "×", least=0.92)
    hand = run.levels.get((model, "fastapi", connections))
    if model == "mlp" and connections == 1 and hand:
        mine = run.levels[model, US, 1]
        run.record.figure(f"{where} fastapi, p50", median(mine.p50) / median(hand.p50), "×", most=1.0)


if __name__ == "__main__":
    main()
