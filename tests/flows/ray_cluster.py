"""A real Ray cluster on loopback, for tests: every node has an address of its own, 127.0.0.2, 127.0.0.3, …"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"})

_STORE = 80 << 20
# A node that is gone is seen to be within two seconds.
_HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@contextmanager
def cluster(*cpus: int, client: int | None = None) -> Iterator[tuple[Any, str]]:
    """A cluster with one node for each number of processors (one of 4), the head first: it and its address. `client`: the port
    of the head's server for Ray's own client, where there is to be one."""
    from ray.cluster_utils import Cluster

    head, *others = cpus or (4,)
    common = {"object_store_memory": _STORE, "include_dashboard": False}
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the newest cluster, wherever that is
    made = Cluster(shutdown_at_exit=True)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made.add_node(
            num_cpus=head,
            node_ip_address="127.0.0.2",
            temp_dir=folder,
            _system_config=_HEALTH,
            ray_client_server_port=client,
            **common,
        )
        for number, cpus_ in enumerate(others, start=3):
            made.add_node(num_cpus=cpus_, node_ip_address=f"127.0.0.{number}", **common)
        try:
            yield made, made.address
        finally:
            made.shutdown()
