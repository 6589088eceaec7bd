"""LitServe: batches, its fast queue, a number of workers. A picture is base64 in JSON."""

from typing import Any

import litserve
from runner import BATCH, KIND, PORT, WAIT_MS, WORKERS, Runner, unwrapped


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.run = Runner()

    def decode_request(self, request):  # noqa: ANN001, ANN201 - LitServe takes annotations for a schema
        return unwrapped(request["input"]) if KIND == "picture" else request["input"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> Any:
        return self.run(inputs)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output):  # noqa: ANN001, ANN201 - as above
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning", access_log=False, num_api_servers=1
    )
