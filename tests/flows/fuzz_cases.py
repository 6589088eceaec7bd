"""Jobs of training drawn at random, and the data they learn. Pure: the same number gives the same case. `mesh_fuzz.py` runs
them on a mesh, `fuzz_alone.py` in one process, `test_training_mesh_fuzz.py` compares."""

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODELS = Path(__file__).with_name("fuzz_models.py")
ROWS, WIDTH, CLASSES = (9, 23, 37), 16, 4  # rows of the train splits; a select split has a quarter of them
COLUMNS = [f"x{at}" for at in range(WIDTH)]
STATE = {"batch", "counted", "centred", "dropout"}  # units that see which rows come together, or draw
WHOLE = {"sequence": ["layers.*"], "blocks": "layers.*"}  # what a network says of itself where nothing else is asked
READ = {"counted", "centred"}  # whose buffers decide what is answered: rank 0's before every step


def write_dataset(folder, rows):
    """Numbers to learn from, a number and a class to learn."""
    draw = np.random.default_rng(rows)
    features = {name: {"type": "float", "statistics": {}} for name in (*COLUMNS, "y")}
    features["c"] = {"type": "label", "names": [str(at) for at in range(CLASSES)], "statistics": {}}
    splits = {}
    for split, count in (("train", rows), ("select", max(CLASSES, rows // 4))):
        x = draw.standard_normal((count, WIDTH))
        columns = dict(zip(COLUMNS, x.T, strict=True)) | {"y": np.tanh(x.sum(1)), "c": np.arange(count) % CLASSES}
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / split / "00000.parquet")
        splits[split] = {"rows": count, "shards": [f"{split}/00000.parquet"]}
        for feature in features.values():
            feature["statistics"][split] = {"missing": 0}
        features["c"]["statistics"][split]["counts"] = np.bincount(columns["c"], minlength=CLASSES).tolist()
    card = {"format": 1, "features": features, "splits": splits, "source": {"name": "drawn"}}
    (folder / "dataset.json").write_text(json.dumps(card))


def made(
    name, units, *, rows, attempts, classes=False, parallel=None, same=(), tied=None, noise=False, streamed=False, **config
):
    """A case. `attempts`: meshes, and after how many steps each is cut off (0: not)."""
    names = {name for name, *_ in units} | ({"batch"} if any(given[-1:] == ["batch"] for _, *given in units) else set())
    names |= {"dropout"} if any(name == "feed" and given[-1] for name, *given in units) else set()
    module = {
        "name": "Net", "inputs": COLUMNS, "target": "c" if classes else "y", "loss": "cross-entropy" if classes else "mse",
        "weights": config.pop("weights", "model.safetensors"), "arguments": {"units": units, "same": same, "tied": tied},
    }  # fmt: skip
    config = {"recipe": "module", "dtype": "float64", "mesh": attempts[0][0], "module": module} | config
    return {"name": name, "config": config, "rows": rows, "attempts": attempts, "parallel": parallel or WHOLE,
            "kept": sorted(names & STATE), "noise": noise, "streamed": streamed}  # fmt: skip


def draw(number):
    """The same number gives the same case."""
    r = random.Random(number)
    classes, rows = r.random() < 0.5, r.choice(ROWS)
    units, same, tied = r.choice([_mlp, _mlp, _cnn, _llama])(r, classes)
    parallel = _parallel(r, units)
    mesh = _mesh(r, parallel)
    config = {
        "seed": r.randrange(100), "epochs": r.choice([1, 2, 2]), "batch_size": r.choice([6, 8, 16, 40]),
        "lr": r.choice([0.003, 0.02]), "schedule": r.choice(["cosine", "constant"]), "warmup": r.choice([0, 0.1, 0.5]),
        "weight_decay": r.choice([0, 0.1]), "recompute": r.random() < 0.3, "verify": r.random() < 0.8,
        "pipe_schedule": r.choice(["1f1b", "gpipe", "interleaved"]), "checkpoint_steps": r.choice([None, 1, 2, 3]),
        "weights": r.choice(["model.safetensors", "model.pth"]), "noise": r.random() < 0.3, "streamed": r.random() < 0.15,
    }  # fmt: skip
    least = rows // -(-rows // config["batch_size"])
    config |= {"clip": r.choice([0.01, 0.3, 5.0])} if r.random() < 0.5 else {}
    config |= {"micro_batches": r.choice([1, 2, 3, 4][: 1 + least // 5])} if r.random() < 0.4 else {}
    config |= {"optimiser": "sgd", "momentum": r.choice([0, 0.9])} if r.random() < 0.2 else {}
    half = {"precision": "bf16"} if units[0][0] != "tokens" and r.random() < 0.5 else {}  # would see other tokens
    config |= {"dtype": "float32"} | half if r.random() < 0.15 else {}
    case = made(
        number, units, rows=rows, attempts=[[mesh, 0]], classes=classes, parallel=parallel, same=same, tied=tied, **config
    )
    if r.random() < 0.4:  # where rows see each other, the same mesh alone does the same
        others = [mesh if case["kept"] else _mesh(r, parallel) for _ in range(r.choice([1, 1, 2]))]
        case["attempts"] = [[other, r.randrange(1, 6)] for other in [mesh, *others][:-1]] + [[others[-1], 0]]
    if r.random() < 0.03 and "dropout" not in case["kept"]:  # a compiler draws in its own way
        case["config"]["compile"] = True
    return case


def _mesh(r, parallel):
    """What the network says nothing of is seldom asked of it."""
    ranks = r.choice([1, 2, 2, 2, 3, 4, 4, 4, 4, 4]) if r.random() < 0.95 else 8
    axes = {"data": 1, "shard": 1, "pipe": 1} | ({"tensor": 1} if parallel["tensor"] or r.random() < 0.05 else {})
    while ranks > 1:
        part = 3 if ranks == 3 else 2 if r.random() < 0.7 else ranks
        axis = "data" if part == 3 and r.random() < 0.5 else r.choice(list(axes))
        axes[axis] *= part
        ranks //= part
    return ",".join(f"{axis}={size}" for axis, size in axes.items() if size > 1) or "data=1"


def _mlp(r, classes):
    width = r.choice([6, 8, 12, 12])
    units = [["linear", WIDTH, width]]
    odd = [["scale"], ["scale", 1], ["scale", width], ["counted"], ["centred", width], ["spare", width],
           ["frozen", width, False], ["frozen", width, True], ["twice", width], ["norm", width], ["batch", width],
           ["dropout", 0.3]]  # fmt: skip
    for _ in range(r.randint(1, 4)):
        plain = [["feed", width, r.choice([8, 12, 24]), 0.0], ["linear", width, width], ["gelu"], ["tanh"]]
        units.append(r.choice(odd if r.random() < 0.35 else plain))
    same = []
    if r.random() < 0.1:
        units += [["linear", width, width], ["tanh"], ["linear", width, width]]
        same = [[len(units) - 3, len(units) - 1]]
    elif r.random() < 0.1:
        units[r.randrange(1, len(units))] = ["feed", width, 8, 0.2]
    return [*units, *_head(r, width, classes, normed=units[-1][0] in ("norm", "batch"))], same, None


def _cnn(r, classes):
    channels = [r.choice([2, 4, 6]) for _ in range(r.randint(1, 3))]
    units = [["grid"], ["stem", 1, channels[0], 3]]
    for before, after in pairwise(channels):
        units.append(["conv", before, after, r.choice(["group", "group", "batch"])])
    return [*units, ["pool"], *_head(r, channels[-1], classes)], [], None


def _llama(r, classes):
    width, vocabulary = 8, r.choice([CLASSES, 12])
    units = [["tokens", vocabulary], ["embed", vocabulary, width]]
    for _ in range(r.randint(1, 2)):
        units += [["attention", width, 4, r.choice([2, 4])], ["feed", width, r.choice([8, 12]), 0.0]]
    units += [["norm", width], ["last"]]
    tied = [1, len(units)] if classes and vocabulary == CLASSES and r.random() < 0.5 else None
    return [*units, *_head(r, width, classes, normed=True)], [], tied


def _head(r, width, classes, normed=False):
    """Never the mean of what was normed: its gradient is 0 but for rounding, of which AdamW makes steps."""
    squeezed = not classes and not normed and r.random() < 0.5
    return [["squeeze"]] if squeezed else [["linear", width, CLASSES if classes else 1]]


def _parallel(r, units):
    """What the network says of itself: right, though it may leave out what the mesh then needs."""
    tensor, heads = {}, {}
    for at, (name, *given) in enumerate(units):
        if name == "feed" and r.random() < 0.95:
            tensor |= {f"layers.{at}.up": "columns", f"layers.{at}.down": "rows"}
        if name == "attention" and r.random() < 0.9:
            tensor |= {f"layers.{at}.{part}": "columns" for part in "qkv"} | {f"layers.{at}.o": "rows"}
            heads[f"layers.{at}"] = ["heads", "kv_heads"]
        if name == "embed" and r.random() < 0.5:
            tensor[f"layers.{at}"] = "rows"
        if name == "linear" and given[1] % 2 == 0 and r.random() < 0.3:
            tensor[f"layers.{at}"] = "gathered"
    said = {"tensor": tensor, "heads": heads, "sequence": ["layers.*"]}
    return said | ({"blocks": "layers.*"} if r.random() < 0.85 else {})
