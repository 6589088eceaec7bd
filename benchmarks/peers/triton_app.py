"""Triton by NVIDIA's PyTriton: its C++ server and dynamic batcher, Python instances behind it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from runner import BATCH, KIND, PORT, SHAPE, WAIT_MS, WIDTH, WORKERS, Runner


def instance() -> Callable[..., Any]:
    run = Runner()

    @batch
    def served(input: Any) -> dict[str, Any]:  # noqa: A002 - the argument is the tensor
        return {"output": run([text.decode() for text in input.ravel()] if KIND == "text" else input)}

    return served


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, grpc_address="127.0.0.1", grpc_port=PORT + 1, metrics_port=PORT + 2,
        log_verbose=0,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="m",
            infer_func=[instance() for _ in range(WORKERS)],
            inputs=[Tensor(name="input", dtype=bytes if KIND == "text" else np.float32, shape=SHAPE)],
            outputs=[Tensor(name="output", dtype=np.float32, shape=(WIDTH,))],
            config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=1000 * WAIT_MS)),
            strict=False,
        )
        triton.serve()
