"""Control is really dead for a while: what each call comes to by then, and that all that were answered are booked once."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx
from attack_tools import CALL, serve_matmul
from kill_checks import rows
from kill_processes import Platform, kept_down, until

WHOLE = (200, {"status": "ready", "control": "ok", "database": "ok"})
HELD = (200, {"status": "ready", "control": "gone", "database": "ok"})
# Seconds: control counts as gone from its last answer on, up to half a second before it was killed; a verdict on a caller
# holds for half a second.
BLURRED = 1.0
# Calls that must have been answered, and refused where the grace ends before the outage does.
LEAST = 5


class Serving:
    """A platform with one deployment, and a client of it."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform = platform
        with platform.yard() as yard:
            serve_matmul(yard, folder, "matmul")
            self._key = yard.profile.key
        self._client = httpx.Client(base_url=platform.url, timeout=40, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def fresh_key(self) -> str:
        with self.platform.yard() as yard:
            return str(yard.create_key("infer")["key"])

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        answer = self._client.get(path)
        return answer.status_code, answer.json()

    def ready(self) -> tuple[int, dict[str, Any]]:
        return self.get("/readyz")

    def call(self, key: str | None = None, deployment: str = "matmul") -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self._key}"}
        return self._client.post(f"/v2/models/{deployment}/infer", json=CALL, headers=headers)

    def is_whole(self) -> bool:
        return self.ready() == WHOLE and self.call().status_code == 200


def outage(serving: Serving, *, seconds: float, grace: float, successors: signal.Signals = signal.SIGKILL) -> None:
    """Kill control and keep it dead for `seconds` of calls; within the grace all are answered, then none is, and `/readyz` says
    why; then let it come back and look at the books."""
    key, answered, refused = serving.fresh_key(), 0, 0
    assert serving.is_whole()
    with kept_down(serving.platform, "control", successors):
        died = time.monotonic()
        until(lambda: serving.ready() == HELD, min(grace, 5.0), "control is missed")
        while (asked := time.monotonic() - died) < seconds or refused < (LEAST if seconds > grace else 0):
            answer = serving.call(key)
            if asked < grace - BLURRED:
                assert answer.status_code == 200, (asked, answer.text)
                if time.monotonic() - died < grace - BLURRED:
                    assert serving.ready() == HELD
            elif asked > grace + BLURRED:
                _check_refusal(serving, answer)
                refused += 1
            answered += answer.status_code == 200
            assert serving.get("/healthz") == (200, {"status": "ok"})
            time.sleep(0.02)
    until(serving.is_whole, 60, "control is back")
    for _ in range(10):
        assert serving.call(key).status_code == 200
    assert answered >= LEAST
    print(f"{answered} calls answered, {refused} refused after {grace:g} s", flush=True)
    _check_books(serving.platform.data, key, answered + 10)


def _check_refusal(serving: Serving, answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
    assert "control process is gone" in answer.json()["error"]
    status, said = serving.ready()
    assert (status, said["error"]["code"]) == (503, "unavailable")
    assert "control process is gone" in said["error"]["message"]


def _check_books(data: Path, key: str, answered: int) -> None:
    """Each answered call is in the ledger once, and nothing else is: what was refused never became a call."""
    query = f"select coalesce(sum(calls), 0), coalesce(sum(errors), 0) from usage where key = '{key.split('_')[1]}'"
    until(lambda: rows(data, query)[0][0] >= answered, 15, "all is settled")
    # What would come too much comes with a later settlement, of which there are two a second: only time tells that none does.
    time.sleep(1.5)
    assert rows(data, query) == [(answered, 0)]
