"""KServe's model server: the Open Inference Protocol with its binary extension. Its batcher is a sidecar of Kubernetes, so
there are no batches here."""

import logging
from typing import Any

from kserve import InferOutput, InferResponse, Model, ModelServer
from runner import KIND, PORT, WORKERS, Runner


class Served(Model):
    def __init__(self) -> None:
        super().__init__("m")
        self.run, self.ready = None, True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        if self.run is None:  # only now: the model is pickled on its way to the server's worker processes
            self.run = Runner()
        given = payload.inputs[0].as_numpy()
        if KIND == "text":
            given = [one.decode() if isinstance(one, bytes) else str(one) for one in given.ravel()]
        found = self.run(given)
        output = InferOutput("output", list(found.shape), "FP32")
        output.set_data_from_numpy(found, binary_data=KIND == "picture")
        return InferResponse(response_id=payload.id or "0", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    logging.disable(logging.INFO)
    server = ModelServer(http_port=PORT, workers=WORKERS, enable_grpc=False, enable_docs_url=False, access_log_format=None)
    server.start([Served()])
