"""A launcher for tests: ranks forked from one process that has imported what they need, as `jobs/launcher.py` does.

A script calls `serve(rank_main)`. A job is a line of JSON on stdin, with its `folder` and how many `ranks`; the answer is a
line of the ranks' exit codes. What a rank prints goes to `folder/rank-N.txt`; an accident ends it with 1 and its traceback.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rank = Callable[[dict[str, Any], int], int]


def serve(rank_main: Rank) -> None:
    for line in sys.stdin:
        job = json.loads(line)
        ranks = [_fork(rank_main, job, rank) for rank in range(job["ranks"])]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]), flush=True)


def _fork(rank_main: Rank, job: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with (Path(job["folder"]) / f"rank-{rank}.txt").open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                code = rank_main(job, rank)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)
