"""A model served as one does it by hand: FastAPI, uvicorn, onnxruntime, the model called inline in an asynchronous route.

fastapi_app.py MODEL PORT WORKERS
"""

import os
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Question(BaseModel):
    x: list[float]


class Answer(BaseModel):
    y: list[float]


def make() -> FastAPI:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, ["CPUExecutionProvider"])
    app = FastAPI()

    @app.post("/predict", response_model=Answer)
    async def predict(question: Question) -> Answer:
        (y,) = session.run(None, {"x": np.array([question.x], np.float32)})
        return Answer(y=y[0].tolist())

    return app


if __name__ == "__main__":
    model, port, workers = sys.argv[1:]
    os.environ["BENCH_MODEL"] = model
    uvicorn.run(
        "fastapi_app:make", factory=True, host="127.0.0.1", port=int(port), workers=int(workers),
        loop="uvloop", http="httptools", access_log=False, log_level="warning",
    )  # fmt: skip
