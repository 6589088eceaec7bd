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
import openvino as ov  # type: ignore[import-untyped]
import openvino_genai as genai

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.gguf import widen
from modelyard.engines.huggingface import ends
from modelyard.engines.openvino import reason
from modelyard.engines.tensors import text_of
from modelyard.errors import Invalid
from modelyard.tensors import Call, Reply, Signature, Tensor

MOST = 128  # tokens of an answer, where neither the call nor its grant says
_CACHE = 1  # GiB for what was read and said of all calls
_UNKNOWN_KIND = "gguf_tensor_to_f16"  # of what OpenVINO says where it does not know a tensor's kind
_SHOWN = 40  # letters of a text that is refused
_BROKEN = "\ufffd"  # stands for a letter of which not all bytes are there yet


@dataclass(slots=True)
class _Running:
    """A call: what it asks, of at most so many tokens; where it is in the loop its handle there."""

    asked: str
    most: int
    config: Any
    handle: Any = None
    tokens: list[int] = field(default_factory=list)
    said: int = 0  # letters


def _scheduler() -> Any:
    config = genai.SchedulerConfig()
    config.cache_size = _CACHE
    return config


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
        # OpenVINO's own defaults take fewer bits for sums and for what was read, and would answer otherwise.
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
        try:
            self._pipe = _opened(path, _scheduler(), options)
        except (RuntimeError, IndexError) as error:  # of a file that lacks what it reads
            raise Invalid(f"OpenVINO GenAI refuses '{path.name}': {reason(error, path)}") from error
        self._tokenizer = self._pipe.get_tokenizer()
        self._ends = set(ends(folder))  # OpenVINO takes one from the file
        self._card, self._numbers = card, count()
        self._running: dict[str, _Running] = {}
        self._said: list[tuple[str, Reply, bool]] = []  # and not told yet
        self._fallen: list[str] = []  # out of the loop, and waiting to go on
        self._suspect = False  # whether the first of them may be what there was no room for

    @property
    def signature(self) -> Signature:
        return self._card.signature

    def add(self, call: Call) -> None:
        asked = int(call.parameters.get("max_tokens", MOST))
        most = asked if call.grant is None else min(asked, call.grant)
        if most < 1:
            self._said.append((call.id, Reply((), 0), True))
            return
        config = genai.GenerationConfig()
        config.stop_token_ids = self._ends
        config.ignore_eos = bool(call.parameters.get("ignore_end", False))  # for who measures
        config.do_sample = float(call.parameters.get("temperature", 0.0)) > 0
        if config.do_sample:
            config.temperature = float(call.parameters["temperature"])
            config.rng_seed = int(call.parameters.get("seed", 0))
        (text,) = call.inputs[0].array.reshape(-1).tolist()
        words = text_of(call.inputs[0].name, 0, text)
        running = self._running[call.id] = _Running(words, most, config)
        if self._fallen:
            self._fallen.append(call.id)
        else:
            self._start(running)

    def step(self) -> Sequence[tuple[str, Reply, bool]]:
        if self._fallen and not self._pipe.has_non_finished_requests():
            self._go_on()
        if self._pipe.has_non_finished_requests():
            self._pipe.step()
        there = [(call, running) for call, running in self._running.items() if running.handle is not None]
        fallen = []
        for call, running in there:
            ended = running.handle.get_status() != genai.GenerationStatus.RUNNING
            new: list[int] = []
            while running.handle.can_read():
                for found in running.handle.read().values():
                    new += found.generated_ids
            running.tokens += new
            if running.handle.get_status() == genai.GenerationStatus.IGNORED:
                fallen.append(call)
                running.handle, ended = None, False
            if new or ended:
                self._said.append((call, self._reply(running, len(new), ended), ended))
            if ended:
                del self._running[call]
        if len(fallen) == len(there) == 1:
            raise self._too_long(fallen[0], self._running.pop(fallen[0]))
        if fallen:
            self._fallen, self._suspect = fallen + self._fallen, True
        said, self._said = self._said, []
        return said

    def cancel(self, call: str) -> None:
        self._said = [one for one in self._said if one[0] != call]
        self._fallen = [one for one in self._fallen if one != call]
        running = self._running.pop(call, None)
        if running is not None and running.handle is not None:
            running.handle.cancel()

    def close(self) -> None:
        for call in list(self._running):
            self.cancel(call)
        del self._pipe

    def _go_on(self) -> None:
        """A call that is too long for the cache takes those beside it out of the loop. It is likely the first, which goes on
        alone and is refused if it falls again; then the others go on together."""
        turn = self._fallen[:1] if self._suspect else self._fallen
        self._fallen, self._suspect = self._fallen[len(turn) :], False
        for call in turn:
            self._start(self._running[call])

    def _start(self, running: _Running) -> None:
        """From its text and what it said already."""
        running.config.max_new_tokens = running.most - len(running.tokens)
        asked: Any = running.asked
        if running.tokens:
            read = self._tokenizer.encode(asked).input_ids.data
            asked = ov.Tensor(np.append(read, [running.tokens], axis=1))
        running.handle = self._pipe.add_request(next(self._numbers), asked, running.config)

    def _too_long(self, call: str, running: _Running) -> Invalid:
        tokens, begins = self._tokenizer.encode(running.asked).input_ids.shape[-1], running.asked[:_SHOWN]
        return Invalid(
            f"Call '{call}' asks for {running.most:,} tokens after a text of {tokens:,} ({begins!r} …), for which the cache of "
            f"{_CACHE} GiB is too small: shorten the text, or ask for fewer."
        )

    def _reply(self, running: _Running, tokens: int, ended: bool) -> Reply:
        """The letters that became whole with these tokens."""
        text = self._tokenizer.decode(running.tokens, skip_special_tokens=True) if running.tokens else ""
        whole = text if ended else text.rstrip(_BROKEN)
        part, running.said = whole[running.said :], max(running.said, len(whole))
        spec = self.signature.outputs[0]
        array = np.array([part.encode()], dtype=object)
        return Reply((Tensor(spec.name, spec.datatype, array),) if part else (), tokens)
