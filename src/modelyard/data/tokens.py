"""Texts: UTF-8 to tokens by the version's own tokenizer, filled up to the longest text of a call.

Called through `transforms.build({"name": "text", …}, folder)` by replicas, and by the import of encoders, which proves that the
tokens are those that transformers makes. It knows the library tokenizers alone: a replica needs no torch for it. Which calls
share a batch is not decided here: `ragged` says what fills the rows of shorter ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator
from tokenizers import Tokenizer

from modelyard.data.transforms import needed
from modelyard.errors import Invalid
from modelyard.kinds import Config
from modelyard.tensors import Array, Signature, TensorSpec

MAX_CALL_BYTES = 16 << 20  # of all texts of one call: some seconds of tokenising
MAX_CALL_TOKENS = 1 << 18  # of one call, filled up: what a model of a hundred million parameters runs in a few gigabytes
Tensor = Literal["input_ids", "attention_mask", "token_type_ids"]


class TextOptions(Config):
    """`tokenizer` is a file beside `model.json`. `length`: tokens of a text at most, special ones included; a longer text is
    cut. `pad` is the token that fills up. `inputs`: the engine's, as its graph has them; `output` is the engine's tensor that
    callers get as `public`."""

    tokenizer: str = Field(default="tokenizer.json", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    length: int = Field(ge=1, le=1 << 17)
    pad: int = Field(default=0, ge=0)
    inputs: tuple[Tensor, ...] = ("input_ids", "attention_mask")
    output: str = "sentence_embedding"
    public: str = "embedding"

    @field_validator("inputs")
    @classmethod
    def _tokens_are_there(cls, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if "input_ids" not in inputs or len(set(inputs)) < len(inputs):
            raise ValueError("input_ids is one of them, and none is there twice")
        return inputs


class TextTransform:
    """`text` BYTES [n] → tokens, and which of them are there, INT64 [n, longest]; the engine's `output` → `public`."""

    options: type[Config] = TextOptions

    def __init__(self, options: TextOptions, folder: Path | None = None) -> None:
        self.config: dict[str, Any] = {"name": "text", **options.model_dump(mode="json")}
        self.ragged: Mapping[str, int] = {name: options.pad if name == "input_ids" else 0 for name in options.inputs}
        self._options = options
        self._tokenizer = _tokenizer(options, folder)

    def signature(self, engine: Signature) -> Signature:
        """Raises `Invalid` where the engine takes other tensors than tokens, or lacks the output."""
        o = self._options
        taken = {spec.name: spec.datatype for spec in engine.inputs}
        if taken != dict.fromkeys(o.inputs, "INT64"):
            has = ", ".join(f"{name}:{datatype}" for name, datatype in taken.items())
            raise Invalid(f"The transform 'text' makes {', '.join(o.inputs)}, all INT64; the model takes {has}.")
        given = next((spec for spec in engine.outputs if spec.name == o.output), None)
        if given is None:
            has = ", ".join(spec.name for spec in engine.outputs)
            raise Invalid(f"The transform 'text' wants the output '{o.output}'; the model's are {has}.")
        return Signature((TensorSpec("text", "BYTES", (-1,)),), (TensorSpec(o.public, given.datatype, given.shape),))

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = self._tokenizer.encode_batch_fast(_texts(needed(inputs, "text").reshape(-1)))
        lengths = np.array([len(one) for one in found], np.int64)
        width = int(lengths.max(initial=1))
        if width * len(found) > MAX_CALL_TOKENS:
            raise Invalid(
                f"{len(found)} texts of up to {width} tokens in one call; there is room for {MAX_CALL_TOKENS:,} tokens, with "
                "every text as long as the longest: send them in parts."
            )
        made: dict[str, Array] = {}
        for name, fill in self.ragged.items():
            if name == "attention_mask":
                made[name] = (np.arange(width) < lengths[:, None]).astype(np.int64)
                continue
            made[name] = np.full((len(found), width), fill, np.int64)
            for row, one in enumerate(found):
                made[name][row, : len(one)] = one.ids if name == "input_ids" else one.type_ids
        return made

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {self._options.public: needed(outputs, self._options.output)}


def _texts(values: Array) -> list[str]:
    """Raises `Invalid` naming the first row that is not UTF-8, or from which on there is too much."""
    texts, left = [], MAX_CALL_BYTES
    for row, value in enumerate(values):
        raw = value.encode(errors="surrogatepass") if isinstance(value, str) else bytes(value)
        left -= len(raw)
        if left < 0:
            raise Invalid(f"The texts up to row {row} have more than {MAX_CALL_BYTES:,} bytes: send them in parts.")
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise Invalid(f"Row {row} of 'text': byte {error.start} is not UTF-8 text.") from error
    return texts


def _tokenizer(options: TextOptions, folder: Path | None) -> Tokenizer:
    """The tokenizer in the version's folder, cutting at the options' length and filling up nothing; it starts no threads."""
    path = (folder or Path()) / options.tokenizer
    if folder is None or path.is_symlink() or not path.is_file():
        raise Invalid(f"The transform 'text' reads '{options.tokenizer}', which the version's folder does not have.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it asks at every batch, and a caller's environment may say otherwise
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more particular
        raise Invalid(f"'{options.tokenizer}' is no file of the library tokenizers: {str(error)[:200]}.") from error
    if made.num_special_tokens_to_add(is_pair=False) >= options.length:
        raise Invalid(f"The transform's length is {options.length}: special tokens alone are as many. Give it more.")
    made.no_padding()
    made.enable_truncation(options.length, direction=(made.truncation or {}).get("direction", "right"))
    return made
