"""The filter of system calls, run as the kernel would run it. That it holds is tested with real gangs, in the flows."""

import errno
import os
import re
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelyard.jobs import confine

X86, ARM = 0xC000003E, 0xC00000B7
ALLOWED = 0x7FFF0000
NEW_USER, NEW_NET, VFORK = 0x10000000, 0x40000000, 0x4100


def verdict(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the filter returns for a call: the kernel's `ALLOWED`, or the error number it gives."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    steps, at, held = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        code, then, otherwise, k = steps[at]
        at += 1
        match code:
            case 0x20:
                (held,) = struct.unpack_from("=I", data, k)
            case 0x06:
                return int(k if k == ALLOWED else k & 0xFFFF)
            case _:
                met = {0x15: held == k, 0x45: bool(held & k), 0x35: held >= k}[code]
                at += then if met else otherwise


@pytest.mark.parametrize(
    ("machine", "architecture", "plain", "clone", "unshare", "bpf"),
    [("x86_64", X86, 0, 56, 272, 321), ("aarch64", ARM, 63, 220, 97, 280)],
)
def test_it_refuses_namespaces_and_what_no_training_needs(
    machine: str, architecture: int, plain: int, clone: int, unshare: int, bpf: int
) -> None:
    program = confine.program(machine)
    assert program is not None
    assert verdict(program, architecture, plain, NEW_USER) == ALLOWED
    assert verdict(program, architecture, clone, VFORK) == ALLOWED
    assert verdict(program, architecture, clone, VFORK | NEW_USER) == errno.EPERM
    assert verdict(program, architecture, unshare, NEW_NET) == errno.EPERM
    assert verdict(program, architecture, unshare, 0x400) == ALLOWED  # CLONE_FILES
    for number in (bpf, 425, 426, 427):
        assert verdict(program, architecture, number) == errno.EPERM
    assert verdict(program, architecture, 435) == errno.ENOSYS  # clone3: the C library falls back


@pytest.mark.parametrize(("machine", "architecture", "setsid"), [("x86_64", X86, 112), ("aarch64", ARM, 157)])
def test_new_sessions_are_refused_where_that_is_asked_for(machine: str, architecture: int, setsid: int) -> None:
    plain, strict = confine.program(machine), confine.program(machine, sessions=True)
    assert plain is not None
    assert strict is not None
    assert verdict(plain, architecture, setsid) == ALLOWED
    assert verdict(strict, architecture, setsid) == errno.EPERM
    assert verdict(strict, architecture, 1) == ALLOWED


def test_other_tables_of_calls_are_closed() -> None:
    program = confine.program("x86_64")
    assert program is not None
    assert verdict(program, 0x40000003, 1) == errno.ENOSYS  # 32-bit x86
    assert verdict(program, X86, 0x40000000 | 321) == errno.ENOSYS  # x32


def test_a_machine_without_numbers_has_no_filter() -> None:
    assert confine.program("riscv64") is None


def turn() -> float | None:
    """Seconds of this thread's turns; None where the kernel does not tell."""
    told = Path("/proc/thread-self/sched")
    found = re.search(r"^se\.slice\s*:\s*(\d+)", told.read_text() if told.exists() else "", re.MULTILINE)
    return int(found[1]) / 1e9 if found else None


def test_a_thread_takes_turns_as_long_as_it_asks_for_and_keeps_its_niceness() -> None:
    if turn() is None:
        pytest.skip("this kernel tells no turns in /proc/thread-self/sched")

    def asks() -> tuple[list[float | None], int]:
        turns = [turn()]
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        for seconds in (confine.SHORT, 0.02, 0):
            confine.take_turns(seconds)
            turns.append(turn())
        return turns, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1) as pool:
        (usual, short, long, again), niceness = pool.submit(asks).result()
    assert (short, long, niceness) == (confine.SHORT, 0.02, 3)
    assert again == usual == turn()
