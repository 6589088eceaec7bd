"""The Ray processes that `up` keeps beside the platform: a cluster of its own, or this machine's part of one that it joins.

`supervise` calls it. It builds a command line and an environment and knows nothing else of Ray: control's executor does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.errors import Unavailable
from modelyard.jobs.ray import check_client
from modelyard.settings import Settings

# The setting's value for a cluster that starts and ends with the platform.
OWN = "ray"
_LOOPBACK = "127.0.0.1"
# Nothing of ours lies in Ray's object store; less it does not take.
_STORE = 80 << 20


@dataclass(frozen=True, slots=True)
class Joined:
    """What `up` runs with: the settings for its processes, Ray's command line (none: there is nothing to start) and what is
    added to everybody's environment."""

    settings: Settings
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def join(settings: Settings, folder: Path) -> Joined:
    """How this machine comes to be part of the cluster that the settings name. `folder`: a short one for Ray's sockets.

    Raises `Unavailable` where Ray, or what an address for its client needs, is not installed.
    """
    check_client(settings.cluster)
    if not settings.cluster or settings.cluster.startswith("ray://"):
        return Joined(settings)
    # Ray's guard of memory ends its own workers: ours is the one that holds everything else. The launchers guard the gangs.
    environment = {"RAY_memory_monitor_refresh_ms": "0"}
    common = ["--block", "--disable-usage-stats", "--object-store-memory", str(_STORE)]
    if settings.cluster != OWN:
        host = settings.cluster.rpartition(":")[0]
        same = ["--node-ip-address", host] if host.startswith("127.") else []
        words = ["start", "--address", settings.cluster, "--num-cpus", "0", "--num-gpus", "0", *same, *common]
        return Joined(settings, (_program(), *words), environment)
    port = _free_port()
    cpus = str(settings.job_cpus or os.cpu_count() or 1)
    head = ["--head", "--node-ip-address", _LOOPBACK, "--port", str(port), "--include-dashboard", "false"]
    argv = (_program(), "start", *head, "--num-cpus", cpus, "--temp-dir", str(folder), *common)
    found = settings.model_copy(update={"cluster": f"{_LOOPBACK}:{port}"})
    # Ray takes 127.0.0.1 for a mistake, and listens on all of the machine's addresses, unless it is told that it has but this.
    return Joined(found, argv, {**environment, **_token(settings.data), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})


def _token(data: Path) -> dict[str, str]:
    """Ray lets in only who has the token, in a file of this user's: others on this machine could run anything otherwise."""
    path = data / "ray.token"
    if not path.exists():
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.touch(mode=0o600, exist_ok=False)
        fresh.write_text(secrets.token_hex(32))
        fresh.rename(path)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _program() -> str:
    """Ray's own command, beside this interpreter."""
    found = shutil.which("ray", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        raise Unavailable("The setting cluster needs Ray, which is not installed: pip install 'modelyard[ray]'.")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
