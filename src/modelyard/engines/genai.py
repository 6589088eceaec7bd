"""Runs a language model's GGUF with OpenVINO GenAI on the processor: calls join a running loop, and each step makes a token of
every one. Made by measurement; replicas do not host stream engines yet. It knows no protocol and no chat template.

A step holds the interpreter, so whoever serves with it puts it into a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai as genai

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.gguf import widen
from modelyard.engines.huggingface import ends
from modelyard.engines.openvino import reason
from modelyard.engines.tensors import text_of
from modelyard.errors import Invalid, Unavailable
from modelyard.tensors import Call, Reply, Signature, Tensor

MOST = 128  # tokens of an answer, where neither the call nor its grant says
_CACHE = 1  # GiB for what was read and said of all calls
_UNKNOWN_KIND = "gguf_tensor_to_f16"  # of what OpenVINO says where it does not know a tensor's kind
_BROKEN = "\ufffd"  # stands for a letter of which not all bytes are there yet


@dataclass(slots=True)
class _Running:
    handle: Any
    tokens: list[int] = field(default_factory=list)
    said: int = 0  # letters


def _opened(path: Path, scheduler: Any, options: dict[str, Any]) -> Any:
    """The pipeline of a file; OpenVINO knows no tensors of five bits, so that those are shown to it in eight."""
    try:
        return genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", options)
    except RuntimeError as error:
        if _UNKNOWN_KIND not in str(error):
            raise
        with tempfile.TemporaryDirectory() as folder:
            wide = Path(folder, path.name)
            try:
                fits = widen(path, wide)
            except OSError as full:
                said = f"There is no room to show '{path.name}' to OpenVINO in eight bits, which five bits become for it."
                raise Invalid(said) from full
            except (ValueError, IndexError, KeyError):  # it is broken, as OpenVINO said in its words
                fits = False
            if not fits:
                raise
            return genai.ContinuousBatchingPipeline(str(wide), scheduler, "CPU", options)


class GenAiEngine:
    """A `StreamEngine` over `card.files['gguf']`: a text in, the text that follows it out, by the likeliest token each time or
    by the parameters `temperature` and `seed`; `max_tokens` at most. Raises `Unsafe` for paths outside `folder`, `Invalid`
    where OpenVINO refuses the file."""

    def __init__(self, folder: Path, card: ModelCard, *, threads: int = 1) -> None:
        if "gguf" not in card.files:
            raise Invalid("model.json names no file for the engine 'genai': expected files.gguf.")
        path = inside(folder, card.files["gguf"])
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = _CACHE
        # OpenVINO's own defaults take fewer bits for sums and for what was read, and would answer otherwise.
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
        try:
            self._pipe = _opened(path, scheduler, options)
        except (RuntimeError, IndexError) as error:  # of a file that lacks what it reads
            raise Invalid(f"OpenVINO GenAI refuses '{path.name}': {reason(error, path)}") from error
        self._tokenizer = self._pipe.get_tokenizer()
        self._ends = set(ends(folder))  # OpenVINO takes one from the file
        self._card, self._numbers = card, count()
        self._running: dict[str, _Running] = {}
        self._ended: list[tuple[str, Reply, bool]] = []

    @property
    def signature(self) -> Signature:
        return self._card.signature

    def add(self, call: Call) -> None:
        asked = int(call.parameters.get("max_tokens", MOST))
        most = asked if call.grant is None else min(asked, call.grant)
        if most < 1:
            self._ended.append((call.id, Reply((), 0), True))
            return
        config = genai.GenerationConfig()
        config.max_new_tokens, config.stop_token_ids = most, self._ends
        config.ignore_eos = bool(call.parameters.get("ignore_end", False))  # for who measures
        config.do_sample = float(call.parameters.get("temperature", 0.0)) > 0
        if config.do_sample:
            config.temperature = float(call.parameters["temperature"])
            config.rng_seed = int(call.parameters.get("seed", 0))
        (text,) = call.inputs[0].array.reshape(-1).tolist()
        words = text_of(call.inputs[0].name, 0, text)
        self._running[call.id] = _Running(self._pipe.add_request(next(self._numbers), words, config))

    def step(self) -> Sequence[tuple[str, Reply, bool]]:
        said, self._ended = self._ended, []
        if self._pipe.has_non_finished_requests():
            self._pipe.step()
        for call, running in list(self._running.items()):
            ended = running.handle.get_status() != genai.GenerationStatus.RUNNING
            new: list[int] = []
            while running.handle.can_read():
                for found in running.handle.read().values():
                    new += found.generated_ids
            running.tokens += new
            if running.handle.get_status() == genai.GenerationStatus.IGNORED:
                raise Unavailable("There is no room for so long a text beside those that are being answered.")
            if new or ended:
                said.append((call, self._reply(running, len(new), ended), ended))
            if ended:
                del self._running[call]
        return said

    def cancel(self, call: str) -> None:
        self._ended = [one for one in self._ended if one[0] != call]
        running = self._running.pop(call, None)
        if running is not None:
            running.handle.cancel()

    def close(self) -> None:
        for call in list(self._running):
            self.cancel(call)
        del self._pipe

    def _reply(self, running: _Running, tokens: int, ended: bool) -> Reply:
        """The letters that became whole with these tokens."""
        text = self._tokenizer.decode(running.tokens, skip_special_tokens=True) if running.tokens else ""
        whole = text if ended else text.rstrip(_BROKEN)
        part, running.said = whole[running.said :], max(running.said, len(whole))
        spec = self.signature.outputs[0]
        array = np.array([part.encode()], dtype=object)
        return Reply((Tensor(spec.name, spec.datatype, array),) if part else (), tokens)
