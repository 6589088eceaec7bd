"""A model served as one does it by hand: FastAPI, uvicorn, onnxruntime, the model called inline in an asynchronous route.

A picture is the body's bytes, there and back.
"""

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from runner import KIND, PORT, WORKERS, Runner, packed


class Vector(BaseModel):
    input: list[float]


class Text(BaseModel):
    input: str


class Answer(BaseModel):
    output: list[float]


def make() -> FastAPI:
    run, app = Runner(), FastAPI()

    async def vector(question: Vector) -> Answer:
        return Answer(output=run([question.input])[0].tolist())

    async def text(question: Text) -> Answer:
        return Answer(output=run([question.input])[0].tolist())

    async def picture(request: Request) -> Response:
        return Response(run([packed(await request.body())]).tobytes(), media_type="application/octet-stream")

    if KIND == "picture":
        app.post("/predict")(picture)
    else:
        app.post("/predict", response_model=Answer)(vector if KIND == "vector" else text)
    return app


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_app:make", factory=True, host="127.0.0.1", port=PORT, workers=WORKERS,
        loop="uvloop", http="httptools", access_log=False, log_level="warning",
    )  # fmt: skip
