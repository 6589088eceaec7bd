"""Job kinds that behave and misbehave. They run inside the sandbox: this folder is shown there read-only, beside torch."""

import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from modelyard.errors import Invalid
from modelyard.kinds import Config, JobKind


class Plan(Config):
    """What the run function is to do; `number` and `text` mean what the function makes of them."""

    number: int = 0
    text: str = ""
    rank: int = 0


def reduce_all(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Sum the ranks' numbers with gloo, and leave the sum."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=context.rendezvous, rank=context.rank, world_size=context.world_size)
    value = torch.tensor([float(context.rank + 1)])
    dist.all_reduce(value)
    print(f"rank {context.rank} sees {value.item():g}")
    context.metric(1, total=value.item())
    context.progress(1, 1)
    context.report(samples=10, threads=torch.get_num_threads())
    dist.destroy_process_group()
    if context.rank == 0:
        folder = context.work / "out"
        folder.mkdir()
        (folder / "sum.txt").write_text(f"{value.item():g}")
        outputs.publish("sum", folder, metadata={"total": value.item()})


def copy(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Copy the input 'files' to an output, with what the config says."""
    if context.rank:
        return
    folder = context.work / "out"
    folder.mkdir()
    for path in inputs["files"].view.files if "files" in inputs else ():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with inputs["files"].view.open(path) as file:
            target.write_bytes(file.read())
    (folder / "note.txt").write_text(config.text)
    context.report(rows=config.number)
    outputs.publish("copy", folder, task="text-generation", metadata={"note": config.text}, alias="best")


def raises(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    if context.rank == config.rank:
        raise ValueError("boom")
    wait_for_ever(context)


def refuses(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    raise Invalid("the config is not to my taste")


def exits(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    if config.text == "hard":
        os._exit(config.number)
    sys.exit(config.number)


def users_code(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    source = context.work / "theirs.py"
    source.write_text("def f():\n    return 1 / 0\n")
    scope: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), scope)
    scope["f"]()


def wait_for_ever(context: Any) -> None:
    while True:
        context.check()
        time.sleep(0.02)


def waits(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    print("waiting")
    wait_for_ever(context)


def works(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Count samples in each rank, burning processor time, to `number` or until it is stopped."""
    samples = 0
    while samples < config.number or not config.number:
        context.report(samples=(samples := samples + 1))
        context.check()
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass


def spins(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Never checks."""
    while True:
        pass


def stalls(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """In the first life rank `rank` stops after its checkpoint, while the others go on saying that they live."""
    folder = context.work / "checkpoint"
    if context.rank == 0:  # a folder that is stored may have one writer
        folder.mkdir(exist_ok=True)
        (folder / "step.txt").write_text("1")
    context.checkpoint(1, folder)
    if context.latest() is None:
        spins(config, inputs, outputs, context) if context.rank == config.rank else wait_for_ever(context)
    context.report(rows=1)


def loads(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Say nothing for `number` seconds, which rank 0 announced and the others as well if `text` says so."""
    if context.rank == 0 or config.text:
        context.allow(10)
    time.sleep(config.number)
    context.allow()


def hogs(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    blocks = []
    while True:
        blocks.append(bytearray(16 << 20))
        context.check()


def dies(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    if context.rank == config.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_ever(context)


def prints(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    sys.stdout.buffer.write(b"bytes \xff here\n")
    sys.stdout.buffer.write(b" 10%\r 50%\r100%\n")
    sys.stdout.flush()
    print("x" * 20_000)
    print("to stderr", file=sys.stderr)
    os.write(1, b"no newline at the end")


def floods(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    for line in range(config.number):
        print(f"line {line}")


def counts(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Count to `number`, a checkpoint a step; in the first life die at `rank`'s step, or wait for the launcher to be killed."""
    before = context.latest()
    start = int((before / "step.txt").read_text()) if before else 0
    context.log(f"begins at {start}")
    for step in range(start + 1, config.number + 1):
        folder = context.work / "checkpoint"
        folder.mkdir(exist_ok=True)
        (folder / "step.txt").write_text(str(step))
        context.checkpoint(step, folder)
        if before is None and step == config.rank:
            context.report(counted=step)
            if config.text == "rank":
                os.kill(os.getpid(), signal.SIGKILL)
            wait_for_ever(context)
    folder = context.work / "out"
    folder.mkdir()
    (folder / "count.txt").write_text(str(config.number))
    context.report(rows=config.number)
    outputs.publish("count", folder)


def litters(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Tell what there is at the beginning; in the first life leave all sorts of things, and die."""
    marks = [Path("/tmp/mark"), Path("/tmp/a/b/mark"), Path("/dev/shm/mark")]
    others = [path.name for path in Path("/proc").glob("[0-9]*") if int(path.name) not in (1, os.getpid())]
    launcher = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]  # when it began
    before, there = context.latest(), [mark.name for mark in marks if mark.exists()]
    context.log(f"begins {[launcher, sorted(path.name for path in context.work.iterdir()), there, others]}")
    folder = context.work / "kept"
    folder.mkdir()
    (folder / "note.txt").write_text(config.text)
    if before is not None:
        outputs.publish("kept", folder, metadata={"note": (before / "note.txt").read_text()})
        return
    context.checkpoint(1, folder)
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("here")
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)


def climbs(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Take `number` steps, each of which depends on the one before; a checkpoint every five of them; leave where they led."""
    before = context.latest()
    first, state = (before / "state.txt").read_text().split() if before else ("0", "")
    for step in range(int(first) + 1, config.number + 1):
        context.check()
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        context.report(samples=step - int(first))
        if step % 5 == 0:
            folder = context.work / f"checkpoint-{step}-{context.rank}"
            folder.mkdir()
            (folder / "state.txt").write_text(f"{step} {state}")
            context.checkpoint(step, folder)
    if context.rank == 0:
        folder = context.work / "out"
        folder.mkdir()
        (folder / "state.txt").write_text(state)
        outputs.publish("state", folder)


def parent(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Run `number` children (of kind `text`) and collect how they ended."""
    children = [context.submit(config.text or "copy", {"text": f"child {n}"}, {}) for n in range(config.number)]
    ends = [context.wait(child) for child in children]
    context.report(ends=[end["state"] for end in ends], children=children)


def badly_aliased(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    folder = context.work / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    outputs.publish("out", folder, alias="NO GOOD")


def asks(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    context.report(child=context.submit("copy", {}, {}))


def escapes(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Try to reach what a gang may not reach; each fact says what happened. `text`: the data folder, the run folder, then
    files by name."""
    data, run, *files = config.text.split("\n")
    folders = {"store": Path(data, "store"), "cache": Path(data, "cache"), "logs": Path(data, "logs"), "run": Path(run)}
    named = dict(file.split("=", 1) for file in files)

    def attempt(what: Any) -> str:
        try:
            return f"REACHED {what()!r}"
        except OSError as error:
            return type(error).__name__

    def connect() -> None:
        socket.create_connection(("1.1.1.1", 80), timeout=2)

    def call(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(path))

    context.report(
        **{name: attempt(lambda path=path: Path(path).read_bytes()) for name, path in named.items()},
        **{f"{name}_list": attempt(lambda folder=folder: list(folder.iterdir())) for name, folder in folders.items()},
        other_jobs=sorted(path.name for path in Path(data, "jobs").iterdir()),
        control=attempt(lambda: call(Path(run, "control.sock"))),
        supervisor=attempt(lambda: call(Path(run, "supervisor.sock"))),
        network=attempt(connect),
        shadow=attempt(lambda: Path("/etc/shadow").read_text()),
        home=attempt(lambda: list(Path("/home").iterdir())),
        write_system=attempt(lambda: Path("/usr/canary").write_text("x")),
        write_root=attempt(lambda: Path("/canary").write_text("x")),
        write_package=attempt(lambda: (Path(sys.modules["modelyard"].__file__).parent / "canary").write_text("x")),
        write_input=attempt(lambda: (inputs["files"].view.local() / "canary").write_text("x")) if inputs else "none",
        processes=len(list(Path("/proc").glob("[0-9]*"))),
        environment=sorted(os.environ),
        capabilities=next(
            line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
        ),
    )


def strays(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Leave a process of another session behind, marked by `text` in its arguments; with a `number`, then fail."""
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)", config.text], start_new_session=True, stdout=subprocess.DEVNULL
    )
    print("left")
    if config.number:
        raise ValueError("boom")


def fills(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Fill the work folder: with a million files, or with bytes."""
    folder = context.work / "deep" / "er"
    folder.mkdir(parents=True)
    if config.text == "files":
        for number in range(1_000_000):
            os.mknod(f"{folder}/{number}")  # a plain file
            time.sleep(0.0005)
    else:
        with (folder / "large").open("wb") as file:
            for _ in range(4096):
                file.write(os.urandom(1 << 20))
                file.flush()
                time.sleep(0.002)


def signals(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Signal what runs outside, by its number there; then everything that can be."""

    def attempt(pid: int) -> str:
        try:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGKILL)
            return "REACHED"
        except OSError as error:
            return type(error).__name__

    launcher = os.getppid()
    context.report(launcher=launcher, supervisor=attempt(config.number), control=attempt(int(config.text)))
    context.report(attach=traced(16, launcher), seize=traced(0x4206, launcher))
    for name, path in {"memory": f"/proc/{launcher}/mem", "descriptors": f"/proc/{launcher}/fd/0"}.items():
        try:
            os.close(os.open(path, os.O_RDWR))
            context.report(**{name: "REACHED"})
        except OSError as error:
            context.report(**{name: os.strerror(error.errno)})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):  # there is nobody else
            os.kill(-1, number)
        os.kill(launcher, number)
    folder = context.work / "checkpoint"
    folder.mkdir()
    (folder / "x").touch()
    context.checkpoint(1, folder)  # which the launcher passes on, and its answer


def traced(request: int, pid: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    return "REACHED" if libc.ptrace(request, pid, None, None) == 0 else os.strerror(ctypes.get_errno())


def breeds(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Start `number` children that hold 300 MB each, marked by `text` in their arguments, and wait."""
    code = "import time; held = b'x' * 300_000_000; time.sleep(300)"
    for _ in range(config.number):
        subprocess.Popen([sys.executable, "-I", "-S", "-c", code, config.text], start_new_session=True)
    wait_for_ever(context)


def bombs(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Start `number` processes that sleep for a minute, each its own session's, and wait for none."""
    for _ in range(min(config.number, 2000)):
        os.posix_spawn("/bin/sleep", ["sleep", "60", config.text], {}, setsid=bool(config.rank))
        time.sleep(0.002)
        context.check()
    wait_for_ever(context)


def forks(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Every process forks, and its children do, `number` deep: 2 ** `number` in all, which wait for a minute."""
    for _ in range(min(config.number, 11)):
        os.fork()
        time.sleep(0.05)
    time.sleep(60)
    os._exit(0)


def links(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Hand over a folder outside of the work folder, by a link or openly."""
    if config.text == "link":
        (context.work / "out").symlink_to("/etc")
        outputs.publish("stolen", context.work / "out")
    else:
        outputs.publish("stolen", Path(config.text))


NAMES = [
    "reduce_all",
    "copy",
    "raises",
    "refuses",
    "exits",
    "users_code",
    "waits",
    "works",
    "spins",
    "stalls",
    "loads",
    "hogs",
    "dies",
    "prints",
    "floods",
    "counts",
    "litters",
    "climbs",
    "parent",
    "asks",
    "badly_aliased",
    "escapes",
    "strays",
    "links",
    "bombs",
    "forks",
    "fills",
    "signals",
    "breeds",
]
KINDS = {name: JobKind(name, Plan, f"kinds_for_tests:{name}", optional=("files",), gang=True) for name in NAMES}
KINDS["crosses"] = JobKind("crosses", Plan, "kinds_with_torch:crosses", gang=True)
for name in ("feeds", "shares"):
    KINDS[name] = JobKind(name, Plan, f"kinds_with_torch:{name}", gang=True)
KINDS["strands"] = JobKind("strands", Plan, "kinds_with_torch:strands", gang=True)
