"""The filter of system calls, run as the kernel would run it. That it holds is tested with real gangs, in the flows."""

import errno
import struct

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
