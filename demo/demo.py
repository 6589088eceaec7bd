"""`make demo`: the whole life of a model on this machine. Real digits, real processes, a real port; a few lines a step.

Starts a platform in the empty folder demo/yard, takes scikit-learn's handwritten digits through import, training by a gang of
two ranks, optimisation, deployment and inference, shows the receipt, and writes demo/result.json. Speaks to the platform only
through the SDK; every figure printed is one that the platform, or this client's clock, measured.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from curve import chart, side_by_side

from modelyard.cli.live import Live
from modelyard.cli.receipt import receipt_text
from modelyard.cli.table import table
from modelyard.cli.variants import findings
from modelyard.client import Answer, Yard
from modelyard.errors import ModelyardError
from modelyard.jobs.supervisor import lock
from modelyard.storage.folders import remove
from modelyard.testing import yard as started

HERE = Path(__file__).parent
YARD, RESULT = HERE / "yard", HERE / "result.json"
RANKS = 2
MAX_ACCURACY_DROP = 1.0

Json = dict[str, Any]
console = Console(highlight=False)


@dataclass
class Demo:
    """One run: the platform, when it began, and what goes into result.json."""

    yard: Yard
    result: Json = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A headline, the step, and how long it took."""
        console.rule(f"[bold]{title}", align="left", style="dim")
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.result.setdefault("seconds", {})[title.partition(" ")[0].strip(":").lower()] = round(seconds, 2)
        console.print(f"[dim]{seconds:.1f} s[/dim]\n")

    def import_dataset(self) -> Json:
        with Live("import") as live:
            dataset = self.yard.import_dataset("digits", "sklearn:digits", on_event=live.see)
        splits: dict[str, int] = dataset["metadata"]["splits"]
        total, held_out = sum(splits.values()), sum(rows for name, rows in splits.items() if name != "train")
        say(f"{dataset['reference']}  sha256 {dataset['artefact']}")
        say(table(("split", "rows", "used for"), [(name, rows, PURPOSE[name]) for name, rows in splits.items()]))
        say(f"{total} images, {held_out / total:.0%} held out of training")
        self.result |= {"hashes": {dataset["reference"]: dataset["artefact"]}, "splits": splits}
        return dataset

    def train(self, dataset: str) -> Json:
        with Live("train") as live:
            model = self.yard.train("digits-cnn", dataset, "image-classifier", ranks=RANKS, on_event=live.see)
        job = self.yard.job(model["job"])
        series = live.figures.series
        say(side_by_side(chart("loss", series["loss"]), chart("accuracy on select", series["select_accuracy"])))
        ranks = [
            {"rank": rank, "pid": pid, "samples": job["facts"][str(rank)]["samples"]} for rank, pid in enumerate(job["pids"])
        ]
        say(table(("rank", "pid", "samples"), [tuple(rank.values()) for rank in ranks]))
        say(f"{model['reference']}  sha256 {model['artefact']}  {job['cpu_seconds']:.1f} CPU-seconds")
        self.result["hashes"][model["reference"]] = model["artefact"]
        self.result |= {"ranks": ranks, "curve": series}
        self.result["accuracies"] = {"train": series["accuracy"][-1], "select": series["select_accuracy"][-1]}
        return model

    def optimise(self, model: str) -> Json:
        with Live("optimise") as live:
            best = self.yard.optimize(model, max_accuracy_drop=MAX_ACCURACY_DROP, on_event=live.see)
        job = self.yard.job(best["job"])
        facts: Json = job["facts"]["0"]
        say(findings(facts))
        say(f"{best['reference']}  sha256 {best['artefact']}  {job['cpu_seconds']:.1f} CPU-seconds")
        self.result["hashes"][best["reference"]] = best["artefact"]
        self.result |= {"variants": facts["table"], "chosen": facts["chosen"], "report": facts["report"]}
        self.result["accuracies"]["report"] = {name: facts["report"][name]["value"] for name in ("original", "chosen")}
        return best

    def deploy(self, model: str) -> Json:
        deployment = self.yard.deploy("digits", model)
        (replica,) = deployment["replicas"]
        say(f"{deployment['name']} serves {deployment['model']} on {deployment['engine']}, replica {replica['pid']}")
        say(f"POST {self.yard.profile.url}/v2/models/digits/infer")
        return deployment

    def infer(self, dataset: str) -> Answer:
        """Call as a client would, one held-out image at a time, with a key that may do nothing else."""
        key = self.yard.create_key("infer", name="demo")
        images, labels = held_out(self.yard, dataset)
        seconds, right = [], 0
        with Yard(self.yard.profile.url, key["key"]) as client:
            answer = client.predict("digits", image=images[0])
            for image, label in zip(images, labels, strict=True):
                start = time.perf_counter()
                answer = client.predict("digits", image=image)
                seconds.append(time.perf_counter() - start)
                right += answer["label"][0].decode() == label
        p50, p99 = (float(np.percentile(seconds, q) * 1e3) for q in (50, 99))
        accuracy = right / len(labels)
        say(f"{len(labels)} held-out images, one a call: accuracy {accuracy:.4f}, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        self.result["accuracies"]["client"] = accuracy
        self.result |= {"calls": len(labels) + 1, "p50": p50, "p99": p99, "units": {"p50": "ms", "p99": "ms"}}
        return answer

    def receipt(self, answer: Answer) -> None:
        body = self.used_by(answer)
        say(f"answer {answer.id} of deployment {answer.deployment}, by {answer.model}")
        say(receipt_text(body))
        self.result["receipt"] = body

    def used_by(self, answer: Answer, patience: float = 10.0) -> Json:
        """The receipt, once the calls have been written down: serving is settled a moment after it is answered."""
        deadline = time.monotonic() + patience
        while True:
            body = self.yard.receipt(answer)
            calls = sum(row["calls"] for row in body["usage"] if row["kind"] == "serving")
            if calls >= self.result["calls"] or time.monotonic() > deadline:
                return body
            time.sleep(0.2)


PURPOSE: Mapping[str, str] = {
    "train": "learning",
    "calibrate": "ranges of int8",
    "select": "choosing a variant",
    "report": "the figures reported at the end",
}


def held_out(yard: Yard, dataset: str) -> tuple[list[bytes], list[str]]:
    """Encoded images and labels of the report split, read from the dataset's own files."""
    with TemporaryDirectory() as folder:
        files = yard.fetch(dataset, Path(folder) / "digits", kind="dataset")
        card = json.loads((files / "dataset.json").read_bytes())
        names = card["features"][card["target"]]["names"]
        (image,) = (name for name, feature in card["features"].items() if feature["type"] == "image")
        rows = [pq.read_table(files / shard).to_pydict() for shard in card["splits"]["report"]["shards"]]
    images = [encoded for part in rows for encoded in part[image]]
    return images, [names[position] for part in rows for position in part[card["target"]]]


def say(text: str) -> None:
    """Plain text, or text with colours that are left out where stdout is no terminal."""
    typer.echo(text)


def machine() -> Json:
    libraries = ("modelyard", "torch", "onnxruntime", "numpy", "scikit-learn")
    about = {"python": platform.python_version(), "processors": os.cpu_count(), "machine": platform.machine()}
    return about | {name: version(name) for name in libraries}


def run(yard: Yard) -> Json:
    """The loop, from data to receipt."""
    demo = Demo(yard)
    with demo.step("Import: handwritten digits of scikit-learn"):
        dataset = demo.import_dataset()
    with demo.step(f"Train: a small CNN, by a gang of {RANKS} ranks that share the data"):
        model = demo.train(dataset["reference"])
    with demo.step(f"Optimise: the best variant that loses at most {MAX_ACCURACY_DROP:g} points of accuracy"):
        demo.optimise(model["reference"])
    with demo.step("Deploy: behind an API"):
        demo.deploy("digits-cnn@best")
    with demo.step("Infer: over HTTP, by the Open Inference Protocol, with an API key"):
        answer = demo.infer(dataset["reference"])
    with demo.step("Receipt: what an answer rests on, and what was used"):
        demo.receipt(answer)
    demo.result["seconds"]["all"] = round(time.perf_counter() - demo.began, 2)
    return demo.result | {"machine": machine()}


def main() -> int:
    try:
        for name in ("MODELYARD_URL", "MODELYARD_KEY"):
            os.environ.pop(name, None)  # this run is about its own platform, whatever else the shell points to
        os.close(lock(YARD))
        remove(YARD)
        with started(YARD, MODELYARD_LOG_LEVEL="warning") as yard:
            say(f"\nA platform of its own at {yard.profile.url}, in the empty folder {YARD}\n")
            result = run(yard)
    except (ModelyardError, RuntimeError) as error:
        console.print(f"[red bold]error:[/] {error}\n[dim]The logs are in {YARD / 'logs'}.")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; the platform was ended.")
        return 130
    RESULT.write_text(json.dumps(result, indent=1, default=str) + "\n")
    say(f"Done in {result['seconds']['all']:.0f} s; every figure is in {RESULT.relative_to(HERE.parent)}. To look further:")
    say("  .venv/bin/modelyard up --data demo/yard                      # the same platform again, still with all of it")
    say("  .venv/bin/modelyard ps --all --data demo/yard                # in another terminal")
    say("  .venv/bin/modelyard receipt digits --data demo/yard")
    say("  README.md and docs/quickstart.md                             # the same by hand")
    return 0


if __name__ == "__main__":
    sys.exit(main())
