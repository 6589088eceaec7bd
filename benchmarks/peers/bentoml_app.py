"""BentoML: adaptive batches, a number of workers; `bentoml serve bentoml_app:Served`. A picture is base64 in JSON."""

import bentoml
import numpy as np
from runner import BATCH, KIND, WORKERS, Runner, unwrapped

quiet = {"traffic": {"timeout": 60}, "logging": {"access": {"enabled": False}}, "metrics": {"enabled": False}}


@bentoml.service(workers=WORKERS, **quiet)
class Served:
    def __init__(self) -> None:
        self.run = Runner()

    if KIND == "vector":

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
        def predict(self, inputs: np.ndarray) -> np.ndarray:
            return self.run(inputs)

    else:

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
        def predict(self, inputs: list[str]) -> np.ndarray:
            return self.run([unwrapped(one) for one in inputs] if KIND == "picture" else inputs)
