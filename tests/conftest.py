"""One thread for each process that computes in a test, before torch or numpy is loaded: the tests run side by side, and more
threads than cores wait for each other. What is about threads says how many it wants."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
