"""MLServer: a runtime of one's own, adaptive batches. Writes its settings into PEER_FOLDER and becomes `mlserver start`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse
from runner import BATCH, KIND, PORT, WAIT_MS, WORKERS, Runner


class Served(MLModel):
    async def load(self) -> bool:
        self.run = Runner()
        return True

    async def predict(self, payload: Any) -> InferenceResponse:
        codec = StringCodec if KIND == "text" else NumpyCodec
        found = self.run(codec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", found)])


if __name__ == "__main__":
    folder = Path(os.environ["PEER_FOLDER"])
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": PORT, "grpc_port": PORT + 1, "parallel_workers": WORKERS,
        "metrics_endpoint": None, "use_structured_logging": False,
    }  # fmt: skip
    model = {"name": "m", "implementation": "mlserver_app.Served", "max_batch_size": BATCH, "max_batch_time": WAIT_MS / 1000}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = Path(sys.executable).with_name("mlserver")
    os.execv(program, [str(program), "start", str(folder)])
