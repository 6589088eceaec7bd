"""What every peer runs: the same graph by onnxruntime, one thread, and the same tokenizer, so that only the server differs.

Imported by the peers' programs, in their own environments. `serving.py` says all there is to say in the environment:
PEER_MODEL (an ONNX file with one output), PEER_TOKENIZER (of a text model), PEER_KIND ('vector', 'picture' or 'text'),
PEER_PORT, PEER_WORKERS, PEER_BATCH (1: none) and PEER_WAIT_MS.
"""

import base64
import os
from typing import Any

import numpy as np
import onnxruntime

KIND = os.environ["PEER_KIND"]
PORT = int(os.environ["PEER_PORT"])
WORKERS = int(os.environ["PEER_WORKERS"])
BATCH = int(os.environ["PEER_BATCH"])
WAIT_MS = int(os.environ["PEER_WAIT_MS"])
SHAPE = {"vector": (10,), "picture": (3, 32, 32), "text": (1,)}[KIND]
WIDTH = {"vector": 1, "picture": 10, "text": 384}[KIND]


class Runner:
    """Samples (rows of numbers, or texts) to an array of one row each."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, ["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]
        self._tokenizer = None
        if KIND == "text":
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(os.environ["PEER_TOKENIZER"])
            self._tokenizer.enable_padding()
            self._tokenizer.enable_truncation(256)

    def __call__(self, samples: list[Any]) -> Any:
        given = self.inputs(samples)
        return self._session.run(None, {name: given[name] for name in self._names})[0]

    def inputs(self, samples: list[Any]) -> dict[str, Any]:
        """What the graph takes."""
        if self._tokenizer is None:
            return {"x": np.asarray(samples, np.float32)}
        encoded = self._tokenizer.encode_batch_fast(list(samples))
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def packed(data: bytes) -> Any:
    """A picture from its bytes."""
    return np.frombuffer(data, np.float32).reshape(SHAPE)


def unwrapped(text: str) -> Any:
    """A picture from base64: the densest that fits into JSON."""
    return packed(base64.b64decode(text))
