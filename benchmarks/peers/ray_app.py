"""Ray Serve: replicas with batches, tuned for throughput as its documentation says. A picture is the body's bytes."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}

import ray
from ray import serve
from runner import BATCH, KIND, PORT, WAIT_MS, WORKERS, Runner, packed
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Served:
    def __init__(self) -> None:
        self.run = Runner()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1000)
    async def together(self, samples: list[Any]) -> list[Any]:
        return list(self.run(samples))

    async def __call__(self, request: Request) -> Any:
        if KIND == "picture":
            row = await self.together(packed(await request.body()))
            return Response(row.tobytes(), media_type="application/octet-stream")
        return {"output": (await self.together((await request.json())["input"])).tolist()}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    handed = {name: value for name, value in os.environ.items() if name.startswith("PEER_")}
    handed |= {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": handed},
        _temp_dir=os.environ["PEER_FOLDER"],
    )  # fmt: skip
    serve.start(
        http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False, "log_level": "WARNING"}
    )
    serve.run(Served.bind(), route_prefix="/predict", blocking=False)
    try:
        while True:
            time.sleep(60)
    finally:
        serve.shutdown()
        ray.shutdown()
