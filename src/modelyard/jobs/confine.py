"""What a process gives up, once and for good, before it runs users' code: system calls, and being looked into; and how it
shares the processors with others, which it may change.

`worker` and `serving.replica` call it first thing; the ranks inherit it. The sandbox keeps files, network and processes away;
this keeps away the parts of the kernel that no model needs and that escapes are found in. Linux, x86-64 and 64-bit ARM;
elsewhere nothing is given up.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
import time
from pathlib import Path

SHORT = 1e-4  # seconds: turns of threads that answer calls, the shortest that the kernel gives
STARTING = 4  # niceness of a replica until its model is loaded: it makes way for those that serve, not for gangs
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_MODE_FILTER = 2
_libc = ctypes.CDLL(None, use_errno=True)

# Of the filter's machine: load a word, jump if equal, if any bit, if at least; return.
_LOAD, _EQUAL, _ANY, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: in namespaces of its own a process has every capability.
_NEW_NAMESPACES = 0x7E020000
# x86-64 has a second table of calls, numbered from here.
_X32 = 0x40000000
_CLONE3 = 435
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}

# Per machine: its audit number; clone and unshare; setsid; what is refused: setns, keyctl, add_key, request_key (one user's
# keys are seen in all sandboxes), bpf, perf_event_open, userfaultfd, io_uring_setup, _enter, _register.
_MACHINES: dict[str, tuple[int, tuple[int, int], int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, (56, 272), 112, (308, 250, 248, 249, 321, 298, 323, 425, 426, 427)),
    "aarch64": (0xC00000B7, (220, 97), 157, (268, 219, 217, 218, 280, 241, 282, 425, 426, 427)),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(machine: str, *, sessions: bool = False) -> bytes | None:
    """The filter of system calls for a machine, as the kernel takes it; None for one we have no numbers of. `sessions`: new
    ones are refused, too."""
    if machine not in _MACHINES:
        return None
    audit, (clone, unshare), setsid, refused = _MACHINES[machine]
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, audit, 1, 0), _refuse(errno.ENOSYS), _step(_LOAD, _NUMBER)]
    steps += [_step(_AT_LEAST, _X32, 0, 1), _refuse(errno.ENOSYS)]
    # Its flags lie in memory, which no filter reads; without it the C library uses clone.
    steps += [_step(_EQUAL, _CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    for number in (*refused, setsid) if sessions else refused:
        steps += [_step(_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    steps += [_step(_EQUAL, clone, 1, 0), _step(_EQUAL, unshare, 0, 3)]
    steps += [_step(_LOAD, _FIRST_ARGUMENT), _step(_ANY, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM)]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def give_up(*, sessions: bool = False) -> bool:
    """Have the kernel refuse these calls to this thread and all it starts, and ignore set-user-id bits; whether it does."""
    filter_ = program(os.uname().machine, sessions=sessions)
    if filter_ is None or _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    given = _Program(len(filter_) // 8, filter_)
    return bool(_libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(given), 0, 0) == 0)


def make_way(nice: int, *, attempts: int = 100) -> None:
    """Have this session's processes together weigh as one of that niceness, where the kernel shares processors out by sessions
    (`sched_autogroup_enabled`): there a niceness counts within its session alone. Unlike that it may be taken back, down to 0.
    Nothing is done where the session is not this process's own, or a sandbox's."""
    if os.getsid(0) != os.getpid() and not os.getsid(0) == os.getppid() == 1:
        return
    for _ in range(attempts):
        try:
            Path("/proc/self/autogroup").write_text(str(nice))
        except BlockingIOError:  # so it answers all of the machine but the first within a tenth of a second
            time.sleep(0.05 + os.getpid() % 100 / 1000)  # each at its own pace
        except OSError:
            return
        else:
            return


def take_turns(seconds: float) -> None:
    """Have this thread, and those it starts, run for so long at a time where others wait for the processor, 0 for as long as is
    usual: who takes shorter turns than the one that runs need not wait for its turn to end (EEVDF; Linux 6.12 on, others pay
    no heed). Nothing is gained over others in all."""
    if (number := _SCHED_SETATTR.get(os.uname().machine)) is not None:
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        asked = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, int(seconds * 1e9), 0, 0)
        _libc.syscall(number, 0, asked, 0)


def hide(*, hidden: bool = True) -> None:
    """Keep processes of the same user from tracing this one, reading its memory or taking its descriptors; or let them."""
    _libc.prctl(_PR_SET_DUMPABLE, int(not hidden), 0, 0, 0)


def _step(code: int, k: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, k)


def _refuse(number: int) -> bytes:
    return _step(_RETURN, _ERROR | number)
