"""mosec: HTTP and batching in Rust before Python workers. PEER_BATCH 1: without its batching, and so without its wait.

A picture is the body's bytes, there and back.
"""

import sys
from typing import Any

import numpy as np
from mosec import Server, Worker
from runner import BATCH, KIND, PORT, WAIT_MS, WORKERS, Runner, packed


class Json(Worker):
    def __init__(self) -> None:
        self.run = Runner()

    def forward(self, data: Any) -> Any:
        if BATCH == 1:
            return {"output": self.run([data["input"]])[0].tolist()}
        return [{"output": row.tolist()} for row in self.run([one["input"] for one in data])]


class Bytes(Json):
    def deserialize(self, data: bytes) -> Any:
        return packed(data)

    def serialize(self, data: Any) -> bytes:
        return data.tobytes()

    def forward(self, data: Any) -> Any:
        return self.run([data])[0] if BATCH == 1 else list(self.run(np.stack(data)))


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning", "--timeout", "60000"]
    server = Server()
    worker = Bytes if KIND == "picture" else Json
    server.append_worker(worker, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
