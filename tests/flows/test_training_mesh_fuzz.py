"""Random jobs on random meshes against one process in float64: the same parameters to 1e-12, or a refusal before the first
step; never another number, a hang or a traceback.

`fuzz_cases.py` draws them. What once found something runs always, fresh ones run in `make soak`, which prints their numbers; to
see one again: `python tests/flows/test_training_mesh_fuzz.py NUMBER …`.
"""

import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fuzz_cases
import pytest
import torch
from fuzz_cases import made
from safetensors.torch import load_file

HERE = Path(__file__).parent
CASES, MINUTES = 60, 6
# Whatever else is refused must not be.
REFUSED = re.compile(
    r"(leave|leaves) some of .* without|one parameter|need one each|does not say which layers|does not divide|recompute needs"
    r"|The schedule '(1f1b|interleaved)' takes|Batch norm cannot learn|is a number without a dim"
    r"|leaves out|is no sub-module|compile does not"
)


class Fuzz:
    """Runs cases in the forks of one long-lived gang."""

    def __init__(self, process, root):
        self._process, self._root = process, root
        for rows in fuzz_cases.ROWS:
            fuzz_cases.write_dataset(root / f"rows-{rows}", rows)

    def ask(self, **job):
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __call__(self, case):
        """'agrees', or why it was refused. Raises `AssertionError` for whatever must not be."""
        folder = self._root / f"case-{case['name']}"
        shutil.rmtree(folder, ignore_errors=True)
        code = folder / "code"
        code.mkdir(parents=True)
        (code / "model.py").write_text(fuzz_cases.MODELS.read_text() + f"\n\nPARALLEL = {case['parallel']!r}\n")
        common = {"case": case, "folder": str(folder)}
        common["inputs"] = {"dataset": str(self._root / f"rows-{case['rows']}"), "code": str(code)}
        for mesh, limit in case["attempts"]:
            (folder / "work").mkdir(exist_ok=True)
            (folder / "work" / "rendezvous").unlink(missing_ok=True)
            ranks = math.prod(int(part.split("=")[1]) for part in mesh.split(","))
            codes = self.ask(**common, mesh=mesh, ranks=ranks, limit=limit)
            printed = "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.txt")))
            said = [json.loads(path.read_text()) for path in sorted(folder.glob("said-*.json"))]
            if 3 in codes:
                refused = [one for one in said if "message" in one]
                assert all(one["steps"] == 0 for one in refused), refused
                return refused[0]["message"]
            if not any(codes):
                break
            assert 4 in codes and limit, f"{mesh}: {codes}\n{printed}"  # noqa: PT018
        assert not any(codes), f"{mesh}: {codes}\n{printed}"
        codes = self.ask(**common, mesh="alone", ranks=1)
        assert codes == [0], f"alone: {codes}" + (folder / "rank-0.txt").read_text()
        self.compare(case, folder, said)
        shutil.rmtree(folder)
        return "agrees"

    def compare(self, case, folder, said):
        config, curve = case["config"], json.loads((folder / "alone.json").read_text())
        held = {}
        for one in said:
            for place, digest in one["digests"].items():
                assert held.setdefault(place, digest) == digest, f"ranks differ in {place}"
        if "dropout" in case["kept"] and "pipe" in config["mesh"]:
            return  # each stage draws its own
        exact, bf16 = config["dtype"] == "float64", "precision" in config
        tell = 1e-9 if exact else 0.1 if bf16 else 1e-2
        for metric in said[0]["metrics"]:
            found, expected = [metric["loss"], metric["select_loss"]], curve[metric["step"] - 1]
            assert found == pytest.approx(expected, rel=tell, abs=tell), (
                f"epoch {metric['step']}: losses {found}, not {expected}"
            )
        published = folder / "model" / config["module"]["weights"]
        state = torch.load(published) if published.suffix == ".pth" else load_file(published)
        expected, stirred = (load_file(folder / f"{name}.safetensors") for name in ("alone", "stirred"))
        assert set(state) == set(expected), f"{sorted(set(state) ^ set(expected))} are not in both"
        for name, tensor in expected.items() if exact else ():
            apart, rounding = (float((other[name] - tensor).abs().max()) for other in (state, stirred))
            assert apart <= max(1e-12, 20 * rounding), f"{name} differs by {apart:.3g}, and by rounding {rounding:.3g}"


def start():
    command = [sys.executable, str(HERE / "mesh_fuzz.py")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    with start() as process:
        yield Fuzz(process, tmp_path_factory.mktemp("fuzz"))
        process.stdin.close()


def mlp(*units, classes=False):
    return [["linear", 16, 8], *units, ["linear", 8, 4 if classes else 1]]


FOUND = [
    # DDP waits for all gradients: with one step an epoch nobody noticed that it went on without an exchange
    made("unused", mlp(["spare", 8]), rows=9, batch_size=40, epochs=3, attempts=[["data=2", 0]]),
    made("unused in pieces", mlp(["spare", 8]), rows=23, batch_size=12, epochs=1, micro_batches=2, attempts=[["data=2", 0]]),
    # what was computed again was computed from buffers that had moved on; the ranks' own went apart
    made("reads what it writes", mlp(["centred", 8], ["tanh"]), rows=23, batch_size=8, epochs=2, recompute=True,
         checkpoint_steps=2, attempts=[["shard=2", 2], ["shard=2", 0]]),
    # all repeated rows came last, as a piece of one row again and again
    made("batch norm in a pipe", mlp(["batch", 8], ["tanh"]), rows=9, batch_size=40, epochs=2, micro_batches=4,
         attempts=[["pipe=2", 0]]),
    # safetensors takes no tensor twice
    made("tied", [["tokens", 4], ["embed", 4, 8], ["last"], ["linear", 8, 4]], classes=True, tied=[1, 3], rows=9, batch_size=5,
         epochs=1, attempts=[["data=1", 0]]),
    # the answer of a stage is a view, and gloo sends none
    fuzz_cases.draw(902193),
]  # fmt: skip


@pytest.mark.parametrize("case", FOUND, ids=lambda case: str(case["name"]).replace(" ", "-"))
def test_what_once_found_something(fuzz, case):
    assert fuzz(case) == "agrees"


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_random_jobs_on_random_meshes(fuzz):
    first, until, told = random.SystemRandom().randrange(10**6), time.monotonic() + MINUTES * 60, Counter()
    for number in range(first, first + CASES):
        if time.monotonic() > until:
            break
        print(f"case {number}", flush=True)
        answer = fuzz(fuzz_cases.draw(number))
        assert answer == "agrees" or REFUSED.search(answer), f"case {number}: {answer}"
        told[answer == "agrees"] += 1
    assert told[True] > told[False], told


def main(numbers):
    told, bad = Counter(), []
    with start() as process, tempfile.TemporaryDirectory() as root:
        fuzz = Fuzz(process, Path(root))
        for number in numbers:
            case = fuzz_cases.draw(number)
            try:
                answer = fuzz(case)
            except AssertionError as error:
                answer = "FAILED"
                bad.append(number)
                print(f"\n=== {number} {json.dumps(case)}\n{str(error)[-3000:]}", flush=True)
            else:
                answer = answer if answer == "agrees" or REFUSED.search(answer) else f"STRANGE {answer}"
                print(number, answer[:150], case["attempts"], flush=True)
            told[re.sub(r"[\d]+", "N", answer[:110])] += 1
        process.stdin.close()
    print("\n".join(f"{count:4} {answer}" for answer, count in told.most_common()))
    print("failed", bad)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
