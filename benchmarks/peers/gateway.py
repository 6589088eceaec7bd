"""A gateway of its own beside a running platform: gateway.py DATA PORT metered|bare.

`metered` is the gateway as it is. `bare` is the same with an admission that is decided once and for ever, and nothing counted:
what keys, quotas and metering cost is the difference of the two. Started by `metering.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from modelyard.app import gateway as process
from modelyard.serving.gateway import Admission, Credentials, Gateway
from modelyard.settings import read


def bare() -> None:
    """Take access and metering out of `Gateway`."""
    decide, decided = Gateway.admit, dict[str, Admission | None]()

    def admit(self: Gateway, url: bytes, credentials: Credentials, now: float) -> Admission | None:
        known = decided.get("admission")
        if known is None:
            known = decided["admission"] = decide(self, url, credentials, now)
        return known

    def settle(self: Gateway, *_: Any, **__: Any) -> None:
        return None

    Gateway.admit, Gateway.settle = admit, settle  # type: ignore[method-assign]


if __name__ == "__main__":
    data, port, kind = sys.argv[1:]
    if kind == "bare":
        bare()
    process.run(read(data=Path(data), port=int(port)))
